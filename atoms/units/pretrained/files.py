"""Reading what others wrote: nothing is executed, and whatever is wrong is one line that names the file."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from atoms.errors import AtomsError, printable

_AGAIN = "download it again, or say what it is with `format`"


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        AtomsError: If it is missing, or no object.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise AtomsError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from None
    except (ValueError, RecursionError):
        raise AtomsError(f"{path}: is not JSON; {_AGAIN}") from None
    if not isinstance(found, dict):
        raise AtomsError(f"{path}: holds no settings (a {type(found).__name__}, not an object); {_AGAIN}")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        AtomsError: If it is missing, cut off or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise AtomsError(f"{path}: cannot be read ({error.strerror or printable(str(error))}); {_AGAIN}") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise AtomsError(f"{path}: is damaged or no safetensors ({printable(str(error))}); {_AGAIN}") from None


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of an npz file; one that holds Python objects is refused unread.

    Raises:
        AtomsError: If it is missing, damaged, or holds anything but numbers.
    """
    found = {}
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is a single array")
        with archive:
            for name in archive.files:
                found[name] = torch.from_numpy(np.ascontiguousarray(archive[name]))
    except OSError as error:
        raise AtomsError(f"{path}: cannot be read ({error.strerror or printable(str(error))}); {_AGAIN}") from None
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        why = "it holds Python objects, which are never loaded" if "allow_pickle" in str(error) else str(error)
        raise AtomsError(f"{path}: is damaged or no npz of numbers ({printable(why)}); {_AGAIN}") from None
    return found


def read_torch(path: Path) -> dict[str, Any]:
    """A dict saved by torch, of tensors and plain values; a file that holds anything else is refused unexecuted.

    Raises:
        AtomsError: If it is missing, damaged, or would have to run code to be read.
    """
    if not path.is_file():
        raise AtomsError(f"{path}: there is no such file; {_AGAIN}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of a stranger may make the reader fail in any way it likes
        unsafe = "weights_only" in str(error) or "WeightsUnpickler" in str(error)
        why = "it holds more than tensors, and reading it could run code" if unsafe else type(error).__name__
        raise AtomsError(
            f"{path}: cannot be read as a file of tensors ({why}); download it again, or save its state dict alone "
            "where you trust it: torch.save(ae.state_dict(), path)"
        ) from None
    if not isinstance(found, dict):
        raise AtomsError(f"{path}: holds a {type(found).__name__}, not a state dict; {_AGAIN}")
    return found


def take(
    path: Path,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, str],
    *,
    sizes: Mapping[str, Any] | None = None,
    known: tuple[str, ...] = (),
    infinite: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """The tensors that a format has, held to each other's shapes, as float32.

    Args:
        path: The file, for messages.
        tensors: What it holds.
        shapes: The shape of each tensor wanted, one letter a dimension: ``{"W_enc": "HA", "b_dec": "H"}``.
        sizes: What the settings beside it say of these letters; None where they do not say.
        known: Further names that may be there and mean nothing here.
        infinite: Tensors that may hold plus infinity.

    Returns:
        Float32 tensors by name.

    Raises:
        AtomsError: If one is missing, of another shape, no numbers or not finite, or if there are tensors that this
            format does not have, since nobody knows what they would do.
    """
    expected = {letter: size for letter, size in (sizes or {}).items() if size is not None}
    for letter, size in expected.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise AtomsError(f"{path}: the settings beside it give {printable(repr(size))} for {letter}; {_AGAIN}")
    if strangers := sorted(map(str, tensors.keys() - shapes.keys() - set(known))):
        raise AtomsError(f"{path}: holds {printable(', '.join(strangers))}, which this format does not have; {_AGAIN}")
    taken = {}
    for name, letters in shapes.items():
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor):
            raise AtomsError(
                f"{path}: has no tensor {name}; it holds {printable(', '.join(map(str, tensors)))}; {_AGAIN}"
            )
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise AtomsError(f"{path}: {name} is no tensor of floating-point numbers ({tensor.dtype}); {_AGAIN}")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise AtomsError(f"{path}: {name} claims {tuple(tensor.shape)} but holds fewer numbers; {_AGAIN}")
        fits = tensor.ndim == len(letters) and tensor.numel() > 0
        fits = fits and all(expected.setdefault(x, n) == n for x, n in zip(letters, tensor.shape, strict=True))
        if not fits:
            wanted = ", ".join(str(expected.get(letter, letter)) for letter in letters)
            raise AtomsError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}, not ({wanted}) as the rest asks for; {_AGAIN}"
            )
        value = tensor.detach().float()
        bad = value.isnan() | (value == -torch.inf) if name in infinite else ~value.isfinite()
        if bad.any():
            raise AtomsError(f"{path}: {name} has {int(bad.sum())} values that are no finite numbers; {_AGAIN}")
        taken[name] = value
    return taken


def positive(path: Path, settings: Mapping[str, Any], name: str, *, whole: bool = False) -> float:
    """A setting that must be a positive number.

    Raises:
        AtomsError: If it is not there, or no positive (whole) number.
    """
    value: Any = settings.get(name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and 0 < value < 1e300 and not (whole and value % 1):
        return float(value)
    kind = "whole number" if whole else "number"
    raise AtomsError(f"{path}: {name} is {printable(repr(value))}, not a positive {kind}; {_AGAIN}")


def number_of_active(path: Path, settings: Mapping[str, Any], name: str, atoms: int) -> int:
    """Read k of an activation that keeps k of A atoms.

    Raises:
        AtomsError: If it is no whole number from 1 to A.
    """
    k = int(positive(path, settings, name, whole=True))
    if k > atoms:
        raise AtomsError(f"{path}: {name} is {k}, more than the {atoms} atoms there are; {_AGAIN}")
    return k
