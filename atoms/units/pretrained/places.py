"""What other libraries call a place in a model, and what it is called here."""

from __future__ import annotations

import re

_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)")
_NEURONS = re.compile(r"blocks\.(\d+)\.mlp\.hook_post")
_BLOCK = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|layer|h|blocks)\.(\d+)")
_MODULE = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|layer|h|blocks)\.\d+(?:\.\w+)+")


def site_of(place: str | None) -> str | None:
    """A site's name for a TransformerLens hook or a module's path; None where there is none that surely is the same.

    ``blocks.5.hook_resid_post`` and ``model.layers.5`` are ``resid_post.5``; ``blocks.5.mlp.hook_post`` is the input of
    the down-projection, ``mlp_in.5``. Paths of modules inside a block stay what they are. Hooks between attention and
    MLP, of single heads and on embeddings have no name that holds for every model.
    """
    if place is None:
        return None
    if named := _TRANSFORMER_LENS.fullmatch(place):
        return f"{named[2]}.{named[1]}"
    if named := _NEURONS.fullmatch(place):
        return f"mlp_in.{named[1]}"
    if "hook_" in place:
        return None
    if named := _BLOCK.fullmatch(place):
        return f"resid_post.{named[1]}"
    return place if _MODULE.fullmatch(place) else None
