"""The weight matrices that write a model's named sites, and the sites in the order of their condition.

What writes a site is read off the computation, not off names: a forward of one token on the meta device leaves the
graph that autograd would walk back, and the first matrices on the way back from a site's value are those that wrote it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from atoms.activations.language_model import meta_model
from atoms.activations.model_source import ModelSpec, find_config
from atoms.activations.sites import KINDS, Site, model_blocks, resolve_site
from atoms.conditioning.survey import Condition
from atoms.errors import AtomsError, first_line

_PRODUCTS = re.compile(r"(Mm|Addmm|Bmm|Baddbmm|Embedding)Backward")
_SEPARATE = r"experts\.\d+\.(down_proj|w2)(\.weight)?$"  # what transformers loads into one tensor of down-projections


@dataclass(frozen=True)
class SiteCondition:
    """The matrices that write a site. Means are geometric, over the tensors; experts count as one.

    Attributes:
        site: Its name.
        relative: Condition number over the median of Gaussian matrices of the shape.
        effective_rank: Effective rank over the mean of Gaussian matrices of the shape; NaN where one is not known.
        exact: Whether all singular values of all are known; if not, `relative` is a lower bound.
        writers: Names of the tensors.
    """

    site: str
    relative: float
    effective_rank: float
    exact: bool
    writers: tuple[str, ...]


def site_writers(spec: ModelSpec) -> dict[str, tuple[str, ...]]:
    """The parameters that write every named site of a model, which needs no weights.

    Of ``resid_pre`` there is only the first, since the others are ``resid_post`` of the block before. What writes
    ``resid_post`` is what the block adds.

    Args:
        spec: The model.

    Returns:
        Names of parameters, as the model without its head has them, by site, block after block.

    Raises:
        AtomsError: If the model cannot be built, has no list of blocks, or its forward does not run without values.
    """
    model = meta_model(find_config(spec)).requires_grad_(True)
    blocks = model_blocks(model)[1]
    if not blocks:
        raise AtomsError(f"{type(model).__name__} has no list of blocks")
    sites: dict[str, Site] = {}
    for name in ["resid_pre.0", *(f"{kind}.{n}" for n in range(len(blocks)) for kind in KINDS[1:-1])]:
        try:
            sites[name] = resolve_site(model, name)
        except AtomsError:  # `atoms sites` says why this block has none
            continue
    found = _forward(model, sites)
    for n in range(len(blocks)):
        added = [found.get(f"{branch}.{n}", ()) for branch in ("attn_out", "mlp_out")]
        if all(added):
            found[f"resid_post.{n}"] = tuple(dict.fromkeys([*added[0], *added[1]]))
    return {name: found[name] for name in sorted(found, key=_place) if found[name]}


def rank_sites(
    writers: Mapping[str, Sequence[str]], conditions: Sequence[Condition]
) -> tuple[list[SiteCondition], dict[str, str]]:
    """Sites by the condition of the matrices that write them, the highest first.

    Args:
        writers: What `site_writers` returned.
        conditions: What `survey` returned of the model's checkpoint, whose names may differ by what stands before
            the blocks, and by experts that are one tensor each.

    Returns:
        The sites, and for those that cannot be ranked the first parameter of theirs that was not found.
    """
    tensors: dict[str, list[Condition]] = defaultdict(list)
    for condition in conditions:
        tensors[condition.tensor].append(condition)
    ranked, missing = [], {}
    for site, parameters in writers.items():
        groups = [_tensors_of(parameter, tensors) for parameter in parameters]
        if not all(groups):
            missing[site] = parameters[[bool(group) for group in groups].index(False)]
            continue
        parts = [[condition for name in group for condition in tensors[name]] for group in groups]
        ranked.append(
            SiteCondition(
                site,
                _mean([_mean([each.relative for each in part]) for part in parts]),
                _mean([_mean([each.effective_rank / each.effective_rank_null for each in part]) for part in parts]),
                all(each.exact for part in parts for each in part),
                tuple(name for group in groups for name in group),
            )
        )
    return sorted(ranked, key=lambda each: -each.relative), missing


def _forward(model: nn.Module, sites: Mapping[str, Site]) -> dict[str, tuple[str, ...]]:
    """Parameters that write the sites, from a forward of one token."""
    matrices = _matrices(model)
    found: dict[str, tuple[str, ...]] = {}

    def hook(site: Site) -> Callable[..., None]:
        def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = (*args, *kwargs.values())[0] if site.end == "input" else output
            # Here and now, since some models add to the value in place later.
            found[site.name] = _writers(value if isinstance(value, Tensor) else value[0], matrices)

        return look

    handles = [
        model.get_submodule(site.module_path).register_forward_hook(hook(site), with_kwargs=True)
        for site in sites.values()
    ]
    ids = torch.zeros((2, 1), dtype=torch.int64, device="meta")
    failure = ""
    try:
        # Bidirectional models look at the values of a mask; causal ones, without a mask, at those of positions.
        for mask in ({}, {"attention_mask": torch.ones_like(ids)}):
            try:
                with torch.enable_grad():
                    model(input_ids=ids, **mask)
                return found
            except Exception as error:  # code of any model, which misses values
                failure = first_line(error)
    finally:
        for handle in handles:
            handle.remove()
    raise AtomsError(f"the forward of {type(model).__name__} does not run without weights ({failure})")


def _matrices(model: nn.Module) -> dict[Tensor, tuple[str, int | None]]:
    """Name of every matrix, and how wide its outputs are; None for experts, which are laid out either way."""
    found: dict[Tensor, tuple[str, int | None]] = {}
    for path, module in model.named_modules():
        inputs_first = isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D"
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 2:
                found[parameter] = f"{path}.{key}", parameter.shape[1 if inputs_first else 0]
            elif parameter.ndim == 3:
                found[parameter] = f"{path}.{key}", None
    return found


def _writers(value: Tensor, matrices: Mapping[Tensor, tuple[str, int | None]]) -> tuple[str, ...]:
    """Matrices on the way back from a value with no other in between.

    Those whose outputs are as wide as the value, or twice, where the two maps of a gated MLP are one matrix; others
    only weigh what is written: routers, gates of shared experts.
    """
    width = value.shape[-1]
    found: set[str] = set()
    seen: set[Node] = set()
    ahead = [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        before = [each for each, _ in node.next_functions]
        multiplied = [matrices[each] for each in map(_parameter, before) if each is not None and each in matrices]
        if multiplied and _PRODUCTS.match(node.name()):
            found |= {name for name, outputs in multiplied if outputs in (None, width, 2 * width)}
        else:
            ahead += before
    return tuple(sorted(found))


def _parameter(node: Node | None) -> Tensor | None:
    """The parameter that a node hands on, perhaps transposed or in part; None if it is computed."""
    while node is not None and not hasattr(node, "variable"):
        before = [each for each, _ in node.next_functions if each is not None]
        node = before[0] if len(before) == 1 and not _PRODUCTS.match(node.name()) else None
    return None if node is None else node.variable


def _tensors_of(parameter: str, tensors: Mapping[str, Any]) -> list[str]:
    """Names in the checkpoint of a parameter of the model: one, or those of all experts; none if it is not there."""
    inside = re.search(r"[^.]+\.\d+\.", parameter)
    ends = [parameter, parameter[inside.start() :]] if inside else [parameter]
    for end in ends:
        if len(found := [name for name in tensors if f".{name}".endswith(f".{end}")]) == 1:
            return found
    if inside and parameter.endswith("experts.down_proj"):
        block = re.escape(inside[0])
        return [name for name in tensors if re.search(rf"(^|\.){block}.*{_SEPARATE}", name)]
    return []


def _mean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _place(site: str) -> tuple[int, int]:
    kind, _, number = site.partition(".")
    return int(number), KINDS.index(kind)
