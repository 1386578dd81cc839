"""Read what passes through the sites of a model, and how wide it is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from atoms.activations.sites import Site, resolve_site
from atoms.errors import AtomsError, first_line

Result = TypeVar("Result")


def site_widths(meta_model: PreTrainedModel, names: Iterable[str]) -> dict[str, int]:
    """Width H of every site, from a forward of a few tokens.

    Args:
        meta_model: The model as `meta_model` builds it, which costs no memory and hardly any time.
        names: Sites.

    Returns:
        Width by site name.

    Raises:
        AtomsError: If a site does not exist, or does not yield one vector per token.
    """
    reader = SiteReader(meta_model, names)

    def read(inputs: dict[str, Tensor]) -> dict[str, int]:
        with reader:
            return {name: rows.shape[-1] for name, rows in reader.read(**inputs).items()}

    try:
        return _on_meta(meta_model, read)
    except _NoForwardError as error:
        return {site.name: _declared_width(meta_model, site, error) for site in reader.sites}


class Ends(NamedTuple):
    """Widths of what enters and what leaves a module; None where that is not one vector per token."""

    input: int | None
    output: int | None


def module_widths(meta_model: PreTrainedModel) -> dict[str, Ends]:
    """Widths of every module that takes or gives one vector per token, in the order a forward finishes them.

    Args:
        meta_model: The model as `meta_model` builds it.

    Returns:
        Widths by module path; what neither takes nor gives one vector per token is left out.

    Raises:
        AtomsError: If the model's forward does not run on the meta device.
    """
    modules = {path: module for path, module in meta_model.named_modules() if path}

    def listen(inputs: dict[str, Tensor]) -> dict[str, Ends]:
        shape = inputs["input_ids"].shape
        with Calls(modules) as calls:
            meta_model(**inputs)
        found = {call.path: Ends(_width(call.input, shape), _width(call.output, shape)) for call in calls.heard}
        return {path: ends for path, ends in found.items() if any(ends)}

    try:
        return _on_meta(meta_model, listen)
    except _NoForwardError as error:
        raise AtomsError(
            f"the modules of {type(meta_model).__name__} cannot be listed without its weights ({error}); leave "
            "--modules out"
        ) from error


class _NoForwardError(Exception):
    """A model's forward does not run without values."""


def _on_meta(model: PreTrainedModel, run: Callable[[dict[str, Tensor]], Result]) -> Result:
    """Run a model without weights on a few tokens, in more than one sequence to tell what all sequences share."""
    ids = torch.zeros((2, 5), dtype=torch.int64, device=model.device)
    failure = ""
    # Bidirectional models look at the values of a mask; causal ones, without a mask, look for padding in the ids.
    for mask in ({}, {"attention_mask": torch.ones_like(ids)}):
        try:
            with torch.no_grad():
                return run({"input_ids": ids, **mask})
        except AtomsError:
            raise
        except Exception as error:  # code of any model, which misses values, or inputs that are no text
            failure = first_line(error)
    raise _NoForwardError(failure)


def _declared_width(model: PreTrainedModel, site: Site, error: _NoForwardError) -> int:
    """Width of a site as the configuration or the module states it."""
    module = model.get_submodule(site.module_path)
    if isinstance(module, nn.Linear):
        return module.in_features if site.end == "input" else module.out_features
    if isinstance(module, Conv1D):
        return int(module.nx if site.end == "input" else module.nf)
    if site.kind and site.kind != "mlp_in":
        return int(model.config.get_text_config().hidden_size)
    raise AtomsError(
        f"data.harvest.sites: the width of {site.name!r} cannot be told without the weights of {type(model).__name__} "
        f"({error}); name a place in a block (as resid_post.N) or a linear module"
    ) from error


class _Hooked:
    """Hooks that are in place between entering and leaving a context."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()


class SiteReader(_Hooked):
    """Reads the activations at sites, and runs the model no further than the last of them.

    Hooks are in place between entering and leaving the context.

    Args:
        model: The model, without its head.
        names: Sites to read.

    Raises:
        AtomsError: If a site does not exist or is named twice.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        super().__init__()
        self.sites = [resolve_site(model, name) for name in names]
        if len({site.name for site in self.sites}) != len(self.sites) or not self.sites:
            raise AtomsError(f"data.harvest.sites must name each site once, got {[site.name for site in self.sites]}")
        self._model = model
        self._modules = [model.get_submodule(site.module_path) for site in self.sites]
        self._captured: dict[str, Tensor] | None = None  # None outside a reading, where the hooks do nothing
        self._to_the_end = False
        self._shape = torch.Size()

    def __enter__(self) -> Self:
        for site, module in zip(self.sites, self._modules, strict=True):
            if site.end == "input":
                self._handles.append(module.register_forward_pre_hook(self._input_hook(site), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._output_hook(site)))
        return self

    def read(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run the model on one batch, no further than the last site.

        Args:
            inputs: Arguments of the model's forward; ``input_ids`` has shape (batch, sequence).

        Returns:
            Activations of shape (batch, sequence, H) by site name, detached, in the order the sites were given.

        Raises:
            AtomsError: If a site was not reached, or does not hold one vector per token.
        """
        return self._run(inputs, to_the_end=False)[0]

    def read_through(self, **inputs: Any) -> tuple[dict[str, Tensor], Any]:
        """As `read`, but run the whole model and give its own output too.

        Args:
            inputs: Arguments of the model's forward; ``input_ids`` has shape (batch, sequence).

        Returns:
            Activations by site name, and what the model returned.

        Raises:
            AtomsError: As `read`.
        """
        return self._run(inputs, to_the_end=True)

    def _run(self, inputs: Mapping[str, Any], *, to_the_end: bool) -> tuple[dict[str, Tensor], Any]:
        if not self._handles:
            raise RuntimeError("SiteReader reads within its context: with SiteReader(...) as reader")
        captured: dict[str, Tensor] = {}
        self._captured, self._to_the_end = captured, to_the_end
        self._shape = inputs["input_ids"].shape
        output = None
        try:
            output = self._model(**inputs)
        except _AllCaptured:
            pass
        finally:
            self._captured = None
        if missed := [site.name for site in self.sites if site.name not in captured]:
            raise AtomsError(f"data.harvest.sites: the forward of {type(self._model).__name__} never reaches {missed}")
        return {site.name: captured[site.name] for site in self.sites}, output

    def _input_hook(self, site: Site) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._capture(site, _first(args, kwargs))

        return hook

    def _output_hook(self, site: Site) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._capture(site, _first_of(output))

        return hook

    def _capture(self, site: Site, value: Tensor | None) -> None:
        """Keep ``value``, and stop the forward when nothing more is wanted."""
        if self._captured is None:
            return
        if site.name not in self._captured:
            # A copy, because a later module may write into the original in place.
            self._captured[site.name] = _rows(site, value, self._shape).detach().clone()
        if len(self._captured) == len(self.sites) and not self._to_the_end:
            raise _AllCaptured


class _AllCaptured(Exception):  # noqa: N818  # no error: it ends a forward early
    """Every requested site has been read."""


@dataclass(frozen=True)
class Call:
    """One call of a module during a forward."""

    path: str
    """The module's path."""
    input: Tensor | None
    """The first tensor that went in; None if there was none."""
    output: Tensor | None
    """The first tensor that came out."""


class Calls(_Hooked):
    """Notes every call of some modules while in its context, in the order in which the calls end.

    Args:
        modules: Modules by path.

    Attributes:
        heard: The calls.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        super().__init__()
        self.heard: list[Call] = []

    def __enter__(self) -> Self:
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(path), with_kwargs=True))
        return self

    def _hook(self, path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            self.heard.append(Call(path, _first(args, kwargs), _first_of(output)))

        return hook


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first tensor a module is given; by keyword, its hidden states come before anything else."""
    return _first_of((*args, kwargs.get("hidden_states"), *kwargs.values()))


def _first_of(value: Any) -> Tensor | None:
    """The first tensor in what a module gives."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value
    return next((part for part in parts or () if isinstance(part, Tensor)), None)


def per_token(value: Tensor | None, shape: torch.Size) -> Tensor | None:
    """One vector per token, shape (batch, sequence, H), or None; some modules work on flattened tokens.

    Args:
        value: What a module took or gave.
        shape: Shape (batch, sequence) of the token ids.
    """
    if value is not None and value.is_floating_point():
        if value.ndim == 3 and value.shape[:2] == shape:
            return value
        if value.ndim == 2 and value.shape[0] == shape.numel():
            return value.reshape(*shape, -1)
    return None


def _width(value: Tensor | None, shape: torch.Size) -> int | None:
    rows = per_token(value, shape)
    return None if rows is None else rows.shape[-1]


def _rows(site: Site, value: Tensor | None, shape: torch.Size) -> Tensor:
    rows = per_token(value, shape)
    if rows is not None:
        return rows
    found = "no tensor" if value is None else f"{value.dtype} of shape {tuple(value.shape)}"
    raise AtomsError(
        f"data.harvest.sites: {site.name!r} ({site.module_path}) holds {found} for a batch of {tuple(shape)} tokens, "
        "not one vector per token; name another module"
    )
