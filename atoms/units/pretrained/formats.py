"""Which library wrote a directory, told by the files that lie in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from atoms.errors import AtomsError
from atoms.units.pretrained import dictionary_learning, gemma_scope, gemma_scope_2, llama_scope, saelens, sparsify
from atoms.units.pretrained.weights import PretrainedSAE

Format = Literal["saelens", "sparsify", "dictionary_learning", "gemma_scope", "gemma_scope_2", "llama_scope"]

_READERS: dict[Format, Callable[[Path], PretrainedSAE]] = {
    "saelens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
    "gemma_scope": gemma_scope.read,
    "gemma_scope_2": gemma_scope_2.read,
    "llama_scope": llama_scope.read,
}
_SIGNS: tuple[tuple[Format, tuple[str, ...]], ...] = (
    ("saelens", (saelens.CFG, saelens.WEIGHTS)),
    ("sparsify", (sparsify.CFG, sparsify.WEIGHTS)),
    ("llama_scope", (llama_scope.HYPERPARAMS, str(llama_scope.FINAL))),
    ("llama_scope", (llama_scope.CONFIG, llama_scope.WEIGHTS)),
    ("gemma_scope", (gemma_scope.WEIGHTS,)),
    ("gemma_scope_2", (gemma_scope_2.WEIGHTS,)),
    ("dictionary_learning", (dictionary_learning.WEIGHTS,)),
)
FILES = (
    *dict.fromkeys(name for _, names in _SIGNS for name in names),
    *("config.json", saelens.SCALER, saelens.WHITENING),
)
"""Every file that any reader looks at, below the directory of one SAE."""


def read(path: Path, format: Format | None) -> PretrainedSAE:
    """Read an SAE.

    Args:
        path: Its directory, or a file in it.
        format: Whose it is; None to look.

    Raises:
        AtomsError: If there is none, it is of a format unknown, or its reader refuses it.
    """
    if not path.exists():
        raise AtomsError(
            f"path={path}: there is no such file or directory; give an SAE's directory, or hf:org/repo/path"
        )
    if format is not None and format not in _READERS:
        raise AtomsError(f"format={format}: is not one of {', '.join(get_args(Format))}")
    if path.is_file() and path.suffix in (".pt", ".pth") and format in (None, "dictionary_learning"):
        return dictionary_learning.read(path)
    folder = path if path.is_dir() else path.parent
    if path.is_file() and folder.name == llama_scope.FINAL.parent.name:
        folder = folder.parent
    return _READERS[format or _look(path, folder)](folder)


def _look(path: Path, folder: Path) -> Format:
    for format, names in _SIGNS:
        if all((folder / name).is_file() for name in names):
            return format
    inside = sorted(
        {
            str(found.parent.relative_to(folder))
            for pattern in ("*", "*/*", "*/*/*")
            for found in folder.glob(f"{pattern}/*")
            if found.name in ("cfg.json", "params.npz", "params.safetensors", "ae.pt", "hyperparams.json")
        }
    )
    if inside:
        some = ", ".join(inside[:4]) + (", …" if len(inside) > 4 else "")
        raise AtomsError(f"path={path}: holds {len(inside)} SAEs ({some}); name one of them")
    wanted = "; ".join(f"{format}: {' + '.join(names)}" for format, names in _SIGNS)
    raise AtomsError(f"path={path}: holds no SAE of a known format; each has its files ({wanted})")
