"""Name a place in a transformers model.

A site is written

- ``resid_pre.N``: the residual stream as block N receives it, counted from 0; ``resid_pre.0`` are the embeddings,
- ``attn_out.N`` and ``mlp_out.N``: what the block's attention and MLP add to the residual stream,
- ``mlp_in.N``: the input of the MLP's down-projection, where its neurons live,
- ``resid_post.N``: the residual stream after block N (before any final norm of the whole model),
- anything else by the dotted path of a module: ``h.3.mlp.c_fc`` (or ``h.3.mlp.c_fc:output``) for its output,
  ``h.3.mlp.c_fc:input`` for its input.

Names are resolved from the structure of the model, so a family that is built like the known ones needs no entry here.
`site_check` holds what was resolved to what the loaded model says.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from atoms.errors import AtomsError

KINDS = ("resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post")
"""Kinds of places every block has, in the order a forward passes them."""

# Where within a block the kinds are found, as paths that tell a family apart by being there all; the last is the
# module. The first row that fits is taken. What is added to the residual stream is the output of a norm between branch
# and addition (Gemma 2, OLMo 2, GLM 4) before it is the branch's own, and the output projection's in families whose
# branch module performs the addition itself (BERT and its kin, MPNet, BLOOM, MPT).
_PLACES: dict[str, tuple[tuple[str, ...], ...]] = {
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
    "mlp_in": (
        ("intermediate", "output.dense"),
        ("mlp.dense_4h_to_h",),
        ("mlp.down_proj",),
        ("mlp.c_proj",),
        ("mlp.fc_out",),
        ("mlp.fc2",),
        ("mlp.Wo",),
        ("ffn.lin2",),
        ("ffn.down_proj",),
        ("feed_forward.down_proj",),
        ("feed_forward.w2",),
        ("fc1", "fc2"),
    ),
    "mlp_out": (
        ("post_feedforward_layernorm",),
        ("post_mlp_layernorm",),
        ("intermediate", "output.dense"),
        ("mlp.dense_4h_to_h",),
        ("mlp",),
        ("ffn.down_proj",),
        ("ffn",),
        ("feed_forward",),
        ("fc1", "fc2"),
    ),
}
_MEANING = {
    "attn_out": "adds its attention's output",
    "mlp_in": "has its MLP's down-projection",
    "mlp_out": "adds its MLP's output",
}
_NAMED = re.compile(rf"({'|'.join(KINDS)})\.(\d+)")
_FORMER = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
_FORMERLY_NAMED = re.compile(rf"({'|'.join(_FORMER)})\.(\d+)")


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

    @property
    def kind(self) -> str | None:
        """One of `KINDS`, or None if the site is named by a module's path."""
        named = _NAMED.fullmatch(self.name)
        return named[1] if named else None

    @property
    def place(self) -> str:
        """The same place, written as a module's path."""
        return f"{self.module_path}:{self.end}"


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
    if colon and end not in ("output", "input"):
        raise AtomsError(f"data.harvest.sites: {name!r} ends in {end!r}; write '{place}:output' or '{place}:input'")
    blocks_path, blocks = model_blocks(model)
    if (named := _NAMED.fullmatch(place)) and int(named[2]) < len(blocks):
        kind, depth = named[1], int(named[2])
        path = _path_in_block(model, f"{blocks_path}.{depth}", kind)
        if colon:
            raise AtomsError(
                f"data.harvest.sites: {name!r} gives a side to a place that has none; write {place!r}, or "
                f"'{path}:{end}' for a side of that module"
            )
        return Site(name, path, "input" if kind in ("resid_pre", "mlp_in") else "output", depth)
    modules = dict(model.named_modules())
    # Paths are often copied from the model with its head on, where they start with e.g. "transformer.".
    path = place.removeprefix(f"{model.base_model_prefix}.")
    if not path or path not in modules:
        raise _unknown(model, name, place)
    inside = re.match(rf"{re.escape(blocks_path)}\.(\d+)(\.|$)", path) if blocks else None
    return Site(name, path, "input" if end == "input" else "output", int(inside[1]) if inside else None)


def model_blocks(model: PreTrainedModel) -> tuple[str, list[nn.Module]]:
    """Path of the list of the model's blocks, and the blocks; none if the model has no such list.

    The list is told by its length; of several, as in a model with a vision tower, the one nearest the surface is taken.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [(p, list(m)) for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return min(found, key=lambda item: item[0].count("."), default=("", []))


def _path_in_block(model: PreTrainedModel, block: str, kind: str) -> str:
    """Path of the module that a kind of place stands for in one block."""
    if kind in ("resid_pre", "resid_post"):
        return block
    inside = dict(model.get_submodule(block).named_modules())
    name = f"{kind}.{block.rpartition('.')[2]}"
    experts = next((path for path in inside if path.rpartition(".")[2] == "experts"), None)
    if kind == "mlp_in" and experts:
        raise AtomsError(
            f"data.harvest.sites: there is no {name}, because {block} of {model.config.model_type} is a mixture of "
            f"experts ({block}.{experts}) with no single down-projection; name mlp_out or another module's path"
        )
    for signature in _PLACES[kind]:
        if all(path in inside for path in signature):
            return f"{block}.{signature[-1]}"
    children = ", ".join(child for child, _ in model.get_submodule(block).named_children())
    raise AtomsError(
        f"data.harvest.sites: cannot tell for {name} where {model.config.model_type} {_MEANING[kind]}; "
        f"name the module itself, {block}. followed by one of: {children}"
    )


def _unknown(model: PreTrainedModel, name: str, place: str) -> AtomsError:
    if former := _FORMERLY_NAMED.fullmatch(place):
        return AtomsError(f"data.harvest.sites: {name!r} is now written '{_FORMER[former[1]]}.{former[2]}'")
    count = len(model_blocks(model)[1])
    known = [f"{kind}.{index}" for kind in KINDS for index in range(count)]
    modules = [path for path, _ in model.named_modules() if path]
    near = difflib.get_close_matches(place, known + modules, n=3, cutoff=0.5) or modules[:3]
    blocks = f"{', '.join(KINDS[:-1])} and {KINDS[-1]} go from 0 to {count - 1}; " if count else ""
    return AtomsError(
        f"data.harvest.sites: {type(model).__name__} has no place {name!r}; {blocks}nearest names: {', '.join(near)}"
    )
