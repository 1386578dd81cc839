"""Name a place in a transformers model, know its width, and read what passes through it.

A site is written

- ``resid_post.N``: the residual stream after block N, counted from 0 (before any final norm of the whole model),
- ``mlp_out.N`` and ``attn_out.N``: what the block's MLP and attention add to the residual stream,
- a dotted module path (``h.3.mlp.c_proj``): the module's output,

each with ``:input`` behind it for the input of the module instead. Names are resolved from the structure of the
model, so a family that is built like the known ones needs no entry here.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from atoms.errors import AtomsError

# Where a block adds to the residual stream; the first that exists is taken. A norm between branch and addition
# (Gemma 2, OLMo 2, GLM 4) comes before the branch itself, and so do the output projections of families whose
# branch module performs the addition (BERT and its kin, MPNet, BLOOM).
_BRANCHES: dict[str, tuple[tuple[str, ...], ...]] = {
    "mlp_out": (
        ("post_feedforward_layernorm",),
        ("post_mlp_layernorm",),
        ("intermediate", "output.dense"),
        ("mlp.dense_4h_to_h",),
        ("mlp",),
        ("ffn",),
        ("fc1", "fc2"),
    ),
    "attn_out": (
        ("post_feedforward_layernorm", "post_attention_layernorm"),
        ("post_self_attn_layernorm",),
        ("attention.output.dense",),
        ("attention.attn.o",),
        ("self_attention.dense",),
        ("self_attn",),
        ("attn",),
        ("attention",),
    ),
}
_SHORT = re.compile(r"(resid_post|mlp_out|attn_out)\.(\d+)")


@dataclass(frozen=True)
class Site:
    """A place in one model."""

    name: str
    """As the user wrote it."""
    module_path: str
    """Dotted path of the module whose output or input it is."""
    end: Literal["output", "input"]
    """Which side of the module."""
    depth: int | None
    """Index of the block that holds it; None outside the blocks, e.g. in the embeddings."""


def resolve_site(model: PreTrainedModel, name: str) -> Site:
    """Find the module a site's name stands for.

    Args:
        model: The model, on any device including meta.
        name: See the module's docstring.

    Returns:
        The site.

    Raises:
        AtomsError: If the model has no such place; the message lists the nearest names.
    """
    place, colon, end = name.partition(":")
    if colon and end != "input":
        raise AtomsError(f"data.harvest.sites: {name!r} ends in {end!r}; write {place!r} or '{place}:input'")
    modules = dict(model.named_modules())
    # Paths are often copied from the model with its head on, where they start with e.g. "transformer.".
    path = _short_path(model, place) or place.removeprefix(f"{model.base_model_prefix}.")
    if not path or path not in modules:
        raise _unknown(model, name, place)
    blocks_path, blocks = _blocks(model)
    inside = re.match(rf"{re.escape(blocks_path)}\.(\d+)(\.|$)", path) if blocks else None
    return Site(name, path, "input" if colon else "output", int(inside[1]) if inside else None)


def site_widths(meta_model: PreTrainedModel, names: Iterable[str]) -> dict[str, int]:
    """Width H of every site, from a forward of four tokens.

    Args:
        meta_model: The model on the meta device, where this costs no memory and hardly any time.
        names: Sites.

    Returns:
        Width by site name.

    Raises:
        AtomsError: If a site does not exist, or does not yield one vector per token.
    """
    reader = SiteReader(meta_model, names)
    ids = torch.zeros((1, 4), dtype=torch.int64, device=meta_model.device)
    attention = meta_model.config._attn_implementation
    # Meta tensors have no values to look at, and the masks of eager attention are built without.
    meta_model.set_attn_implementation("eager")
    failure: Exception
    try:
        # Bidirectional models look at the values of a mask; causal ones, without a mask, look for padding in the ids.
        for mask in ({}, {"attention_mask": torch.ones_like(ids)}):
            try:
                with torch.no_grad(), reader:
                    return {name: rows.shape[-1] for name, rows in reader.read(input_ids=ids, **mask).items()}
            except (RuntimeError, NotImplementedError) as error:
                failure = error
    finally:
        meta_model.set_attn_implementation(attention)
    return {site.name: _declared_width(meta_model, site, failure) for site in reader.sites}


def _declared_width(model: PreTrainedModel, site: Site, error: Exception) -> int:
    """Width of a site as the configuration or the module states it."""
    module = model.get_submodule(site.module_path)
    if isinstance(module, nn.Linear):
        return module.in_features if site.end == "input" else module.out_features
    if _SHORT.fullmatch(site.name):
        return int(model.config.get_text_config().hidden_size)
    raise AtomsError(
        f"data.harvest.sites: the width of {site.name!r} cannot be told without the weights of {type(model).__name__} "
        f"({str(error).splitlines()[0]}); name a block (resid_post.N, mlp_out.N, attn_out.N) or a linear module"
    ) from error


class SiteReader:
    """Reads the activations at sites, and runs the model no further than the last of them.

    Hooks are in place between entering and leaving the context.

    Args:
        model: The model, without its head.
        names: Sites to read.

    Raises:
        AtomsError: If a site does not exist or is named twice.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        self.sites = [resolve_site(model, name) for name in names]
        if len({site.name for site in self.sites}) != len(self.sites) or not self.sites:
            raise AtomsError(f"data.harvest.sites must name each site once, got {[site.name for site in self.sites]}")
        self._model = model
        self._modules = [model.get_submodule(site.module_path) for site in self.sites]
        self._captured: dict[str, Tensor] | None = None  # None outside `read`, where the hooks do nothing
        self._shape = torch.Size()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for site, module in zip(self.sites, self._modules, strict=True):
            if site.end == "input":
                self._handles.append(module.register_forward_pre_hook(self._input_hook(site), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._output_hook(site)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def read(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run the model on one batch.

        Args:
            inputs: Arguments of the model's forward; ``input_ids`` has shape (batch, sequence).

        Returns:
            Activations of shape (batch, sequence, H) by site name, detached, in the order the sites were given.

        Raises:
            AtomsError: If a site was not reached, or does not hold one vector per token.
        """
        if not self._handles:
            raise RuntimeError("SiteReader.read needs the reader's context: with SiteReader(...) as reader")
        captured: dict[str, Tensor] = {}
        self._captured = captured
        self._shape = inputs["input_ids"].shape
        try:
            self._model(**inputs)
        except _AllCaptured:
            return {site.name: captured[site.name] for site in self.sites}
        finally:
            self._captured = None
        missed = [site.name for site in self.sites if site.name not in captured]
        raise AtomsError(f"data.harvest.sites: the forward of {type(self._model).__name__} never reaches {missed}")

    def _input_hook(self, site: Site) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._capture(site, (*args, *kwargs.values()))

        return hook

    def _output_hook(self, site: Site) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._capture(site, output.values() if isinstance(output, Mapping) else output)

        return hook

    def _capture(self, site: Site, value: Any) -> None:
        """Keep the first tensor of ``value`` and stop the forward when nothing more is wanted."""
        if self._captured is None:
            return
        if not isinstance(value, Tensor):
            value = next((part for part in value if isinstance(part, Tensor)), None)
        # A copy, because a later module may write into the original in place.
        self._captured.setdefault(site.name, _rows(site, value, self._shape).detach().clone())
        if len(self._captured) == len(self.sites):
            raise _AllCaptured


class _AllCaptured(Exception):  # noqa: N818  # no error: it ends a forward early
    """Every requested site has been read."""


def _rows(site: Site, value: Tensor | None, shape: torch.Size) -> Tensor:
    """One vector per token, shape (batch, sequence, H); some modules work on flattened tokens."""
    if value is not None and value.is_floating_point():
        if value.ndim == 3 and value.shape[:2] == shape:
            return value
        if value.ndim == 2 and value.shape[0] == shape.numel():
            return value.reshape(*shape, -1)
    found = "no tensor" if value is None else f"{value.dtype} of shape {tuple(value.shape)}"
    raise AtomsError(
        f"data.harvest.sites: {site.name!r} ({site.module_path}) holds {found} for a batch of {tuple(shape)} tokens, "
        "not one vector per token; name another module"
    )


def _short_path(model: PreTrainedModel, place: str) -> str | None:
    """Module path of a place named by kind and block; None for any other name or a block out of range."""
    short = _SHORT.fullmatch(place)
    if short is None:
        return None
    kind, index = short[1], int(short[2])
    blocks_path, blocks = _blocks(model)
    if index >= len(blocks):
        return None
    block = f"{blocks_path}.{index}"
    return block if kind == "resid_post" else f"{block}.{_branch(model, block, kind)}"


def _branch(model: PreTrainedModel, block: str, kind: str) -> str:
    """Path within a block of the module whose output is added to the residual stream."""
    inside = dict(model.get_submodule(block).named_modules())
    for signature in _BRANCHES[kind]:
        if all(path in inside for path in signature):
            return signature[-1]
    children = ", ".join(name for name, _ in model.get_submodule(block).named_children())
    raise AtomsError(
        f"data.harvest.sites: cannot tell where {model.config.model_type} adds its {kind.removesuffix('_out')}; "
        f"name the module itself, {block}. followed by one of: {children}"
    )


def _blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList | list[nn.Module]]:
    """The list of the model's blocks and its path; empty if the model has none.

    The list is told by its length; of several, as in a model with a vision tower, the one nearest the surface is taken.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return min(found, key=lambda item: item[0].count("."), default=("", []))


def _unknown(model: PreTrainedModel, name: str, place: str) -> AtomsError:
    count = len(_blocks(model)[1])
    known = [f"{kind}.{index}" for kind in ("resid_post", "mlp_out", "attn_out") for index in range(count)]
    modules = [path for path, _ in model.named_modules() if path]
    near = difflib.get_close_matches(place, known + modules, n=3, cutoff=0.5) or modules[:3]
    blocks = f"resid_post, mlp_out and attn_out go from 0 to {count - 1}; " if count else ""
    return AtomsError(
        f"data.harvest.sites: {type(model).__name__} has no place {name!r}; {blocks}nearest names: {', '.join(near)}"
    )
