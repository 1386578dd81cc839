"""What a ``class_path`` may name: reading a config imports nothing but what is on a list."""

import os
from collections.abc import Iterable, Sequence

from jsonargparse import set_parsing_settings

from atoms.errors import AtomsError

ALLOWED = ("atoms", "lightning", "torch", "torchmetrics")
"""Packages whose classes a config may name."""

# Parts of those packages that load code or pickles, or start programs, from what their arguments say.
_DENIED = (
    "atoms.cli",
    "atoms.commands",
    "lightning.app",
    "lightning.fabric.cli",
    "lightning.pytorch.cli",
    "torch.classes",
    "torch.distributed.elastic",
    "torch.distributed.launch",
    "torch.distributed.run",
    "torch.hub",
    "torch.jit",
    "torch.load",
    "torch.multiprocessing",
    "torch.ops",
    "torch.package",
    "torch.save",
    "torch.serialization",
    "torch.testing",
    "torch.utils.bottleneck",
    "torch.utils.collect_env",
    "torch.utils.cpp_extension",
    "torch.utils.model_zoo",
)

FLAG = "--allow_import"
VARIABLE = "ATOMS_ALLOW_IMPORT"


def split_allowed(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take ``--allow_import PACKAGE`` out of a command line, wherever it stands.

    No config can hold it: who writes the config would decide what it may import.

    Args:
        words: The command line.

    Returns:
        The other words, and the packages named by the flag and by ``ATOMS_ALLOW_IMPORT``, which separates them by
        commas.

    Raises:
        AtomsError: If the flag has no value, or names what is no package.
    """
    rest, packages = [], [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    left = iter(words)
    for word in left:
        name, given, value = word.partition("=")
        if name != FLAG:
            rest.append(word)
            continue
        packages.append(value if given else next(left, ""))
    for package in packages:
        if not all(part.isidentifier() for part in package.split(".")) or package.split(".")[0] == "jsonargparse":
            raise AtomsError(f"{FLAG} {package!r} is no package a config may name: give one, for example my_package")
    return rest, packages


_trusted: set[str] = set()
_widened: set[str] = set()  # by this command or an earlier one of the process


def trust(packages: Iterable[str]) -> None:
    """Say which packages, modules or classes the user trusts beside the usual ones; replaces what was said before."""
    _trusted.clear()
    _trusted.update(packages)


def limit_imports() -> None:
    """Refuse, before it is imported, every class path outside `ALLOWED` and what is trusted."""
    set_parsing_settings(
        # The most specific entry decides, and what an allowed name leads to must be allowed as well (torch.os.system).
        import_path_denylist=["*", *_DENIED, *_widened],
        import_path_allowlist=[*ALLOWED, *_trusted],
        instantiate_subclass_spec_in_any=False,
        # A config is a local file; Lightning switches on s3://, http:// and chains of them when it is imported.
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
    )
    _widened.update(_trusted)


def refusal(path: str) -> str:
    """The line about a class path that was refused."""
    package = path.partition(".")[0]
    return (
        f"class_path {path} is not imported: a config may name classes of {', '.join(ALLOWED[:-1])} and "
        f"{ALLOWED[-1]}; if you trust {package}, add {FLAG} {package}"
    )
