"""Hold named sites of a loaded model to what the model itself says of them.

A name promises a meaning, and where it leads is read off the model's structure. One forward of a few tokens shows
whether that was right, in the very tensors that are harvested:

- ``resid_pre.N`` and ``resid_post.N`` are entries N and N + 1 of the model's ``hidden_states``; the last entry may have
  passed further modules, such as a final norm, which are followed;
- ``mlp_in.N``, put through the down-projection, is what the MLP gives;
- ``attn_out.N`` and ``mlp_out.N`` together make ``resid_pre.N`` into ``resid_post.N``; where norms stand between, as in
  BERT, each added to something the block computes is something the block computes next.

A place named by its module's path promises nothing and is not checked.
"""

from collections.abc import Iterable, Mapping
from itertools import product, takewhile
from math import inf, isfinite

import torch
from torch import Tensor
from transformers import PreTrainedModel

from atoms.activations.site_reader import Call, Calls, SiteReader, per_token
from atoms.activations.sites import KINDS, Site, model_blocks, resolve_site
from atoms.errors import AtomsError

TOKENS = 16
"""Length of the sequence that is looked at."""


def check_sites(model: PreTrainedModel, names: Iterable[str], inputs: Mapping[str, Tensor]) -> list[str]:
    """Check that every named site holds what its name promises.

    Args:
        model: The loaded model, in evaluation mode, on one device or several.
        names: Sites as the user wrote them.
        inputs: A batch of real text, shape (batch, sequence) each; the beginning of its first sequence is used.

    Returns:
        One line for each site for which the model offers nothing to compare with.

    Raises:
        AtomsError: If a site holds something else.
    """
    sites = [site for site in (resolve_site(model, name) for name in names) if site.kind]
    if not sites:
        return []
    with torch.inference_mode():
        check = _Check(model, sites, {name: tensor[:1, :TOKENS] for name, tensor in inputs.items()})
        return [note for site in sites if (note := check(site))]


class _Check:
    """What was heard in one forward, and how sites are compared with it.

    Args:
        model: The model.
        sites: Named sites.
        inputs: One sequence.
    """

    def __init__(self, model: PreTrainedModel, sites: list[Site], inputs: dict[str, Tensor]) -> None:
        self.model, self.inputs = model, inputs
        self.count = len(model_blocks(model)[1])
        places = {place for site in sites for place in self._places(site)}
        with SiteReader(model, sorted(places)) as reader, Calls(self._behind_the_blocks()) as calls:
            try:
                self.rows, output = reader.read_through(**inputs, output_hidden_states=True)
            except TypeError as error:
                if "output_hidden_states" not in str(error):
                    raise
                self.rows, output = reader.read_through(**inputs)
        self.behind = calls.heard
        states = getattr(output, "hidden_states", None)
        self.states = states if states is not None and len(states) == self.count + 1 else None

    def __call__(self, site: Site) -> str | None:
        """Compare one site.

        Returns:
            A line if there is nothing to compare it with.
        """
        if site.kind in ("resid_pre", "resid_post"):
            return self._residual(site)
        if site.kind == "mlp_in":
            self._down_projection(site)
        else:
            self._branch(site)
        return None

    def _places(self, site: Site) -> list[str]:
        """The places to listen at for one site."""
        assert site.depth is not None
        if site.kind == "resid_pre":
            return [site.name, *([f"resid_post.{site.depth - 1}"] if site.depth else [])]
        if site.kind == "resid_post":
            return [site.name, *([f"resid_pre.{site.depth + 1}"] if site.depth + 1 < self.count else [])]
        if site.kind == "mlp_in":
            return [site.name, f"{site.module_path}:output", *self._mlp_end(site)]
        return [f"{kind}.{site.depth}" for kind in KINDS if kind != "mlp_in" and self._has(f"{kind}.{site.depth}")]

    def _has(self, name: str) -> bool:
        try:
            resolve_site(self.model, name)
        except AtomsError:
            return False
        return True

    def _mlp_end(self, site: Site) -> list[str]:
        """Where the MLP of a down-projection ends: its own output, or what goes into a norm behind it."""
        name = f"mlp_out.{site.depth}"
        if not self._has(name):
            return []
        mlp = resolve_site(self.model, name).module_path
        return [f"{mlp}:output" if f"{site.module_path}.".startswith(f"{mlp}.") else f"{mlp}:input"]

    def _behind_the_blocks(self) -> dict[str, torch.nn.Module]:
        """Modules outside the blocks and not around them."""
        blocks = model_blocks(self.model)[0]
        return {
            path: module
            for path, module in self.model.named_modules()
            if not f"{path}.".startswith(f"{blocks}.") and not f"{blocks}.".startswith(f"{path}.") and path
        }

    def _residual(self, site: Site) -> str | None:
        assert site.depth is not None
        rows = self.rows[site.name]
        after = site.kind == "resid_post"
        neighbour = f"resid_pre.{site.depth + 1}" if after else f"resid_post.{site.depth - 1}"
        if self.states is not None:
            entry = site.depth + after
            gap = self._gap_to_last(rows) if entry == self.count else _gap(rows, self.states[entry])
            self._settle(site, gap, f"it differs from entry {entry} of hidden_states")
        elif neighbour in self.rows:
            self._settle(site, _gap(rows, self.rows[neighbour]), f"it differs from {neighbour}")
        else:
            return (
                f"note     {site.name} is unchecked: {type(self.model).__name__} gives no hidden_states to compare with"
            )
        return None

    def _gap_to_last(self, rows: Tensor) -> float | None:
        """Difference from the last hidden state, after none or more of the modules behind the blocks."""
        assert self.states is not None
        gaps = [_gap(rows, self.states[-1])]
        for call in self.behind:
            if gaps[-1] is None:
                return None
            if call.input is not None and call.output is not None and _gap(rows, call.input) is None:
                rows = call.output
                gaps.append(_gap(rows, self.states[-1]))
        return None if gaps[-1] is None else min(gap for gap in gaps if gap is not None)

    def _down_projection(self, site: Site) -> None:
        rows = self.rows[site.name]
        given = self.rows[f"{site.module_path}:output"]
        # Where the tensor came in: a model on several devices moves it to the weights itself.
        again = self.model.get_submodule(site.module_path)(rows)
        self._settle(
            site,
            _gap(again, given, products=True),
            f"{site.module_path} makes of it something that differs from its output",
        )
        for place in self._mlp_end(site):
            self._settle(
                site, _gap(given, self.rows[place]), f"{site.module_path} gives what differs from the MLP's {place}"
            )

    def _branch(self, site: Site) -> None:
        pre, attn, mlp, post = (self.rows.get(f"{kind}.{site.depth}") for kind in KINDS if kind != "mlp_in")
        assert pre is not None
        assert post is not None
        gap = _gap_of_sum([rows for rows in (pre, attn, mlp) if rows is not None], post)
        if gap is not None and not self._adds_within(site, pre, self.rows[site.name]):
            self._settle(site, gap, "resid_pre, attn_out and mlp_out sum to what differs from resid_post")

    def _adds_within(self, site: Site, pre: Tensor, branch: Tensor) -> bool:
        """Whether the block adds the branch to its residual stream and takes what comes of it further.

        The stream is what entered the block for the attention, and something the block made of it before for the MLP.
        """
        path = f"{model_blocks(self.model)[0]}.{site.depth}"
        modules = self.model.get_submodule(path).named_modules()
        with Calls({f"{path}.{name}".rstrip("."): module for name, module in modules}) as calls:
            self.model(**self.inputs)
        shape = self.inputs["input_ids"].shape
        earlier = takewhile(lambda call: call.path != site.module_path, calls.heard)
        made = (rows for call in earlier for rows in _ends(call, shape, branch) if _gap(rows, pre) is not None)
        streams = [pre] if site.kind == "attn_out" else list(made)
        heard = (rows for call in calls.heard for rows in _ends(call, shape, branch))
        return any(_gap_of_sum([stream, branch], total) is None for total, stream in product(heard, streams))

    def _settle(self, site: Site, gap: float | None, finding: str) -> None:
        """Raise unless a comparison came out even."""
        if gap is not None:
            size = f"by up to {gap:.3g}" if isfinite(gap) else "in width"
            raise AtomsError(
                f"data.harvest.sites: {site.name!r} ({site.place}) is not what that name promises, because in "
                f"{type(self.model).__name__} {finding} {size}; write {site.place!r} if that place is "
                "meant, or another module's path (`atoms sites --model NAME --modules` lists them)"
            )


def _ends(call: Call, shape: torch.Size, like: Tensor) -> list[Tensor]:
    """What went into and came out of a module, where it could be added to ``like``."""
    values = (per_token(value, shape) for value in (call.input, call.output))
    return [value for value in values if value is not None and value.shape == like.shape]


def _gap(found: Tensor, truth: Tensor, *, products: bool = False) -> float | None:
    """Largest difference if two tensors disagree, else None.

    Both were read in one forward and should be equal to the bit; ``products`` allows for a product computed anew, whose
    rounding grows with the row it belongs to.
    """
    if found.numel() != truth.numel():
        return inf
    precision = torch.finfo(truth.dtype).eps
    found, truth = _exact(found), _exact(truth.reshape(found.shape))
    scale = truth.abs()
    if products:
        scale = 8 * (scale + truth.square().mean(-1, keepdim=True).sqrt())
    return _largest(found, truth, precision * scale)


def _gap_of_sum(terms: list[Tensor], total: Tensor) -> float | None:
    """Largest difference of a sum from what should be it, else None; every addition rounds once, in any order."""
    precision = torch.finfo(total.dtype).eps
    exact = torch.stack([_exact(term) for term in terms])
    return _largest(exact.sum(0), _exact(total), precision * exact.abs().sum(0))


def _exact(rows: Tensor) -> Tensor:
    return rows.double().cpu()


def _largest(found: Tensor, truth: Tensor, allowed: Tensor) -> float | None:
    # Where the model itself overflowed, as float16 may, there is nothing to compare.
    gap = torch.where(truth.isfinite(), (found - truth).abs(), 0.0)
    return None if bool((gap <= allowed.nan_to_num(0.0)).all()) else float(gap.max())
