"""Imports go one way, and mathematics knows no framework."""

import ast
from pathlib import Path

import pytest

import atoms

ROOT = Path(atoms.__file__).parent
MAY_IMPORT = {
    "geometry": set(),
    "sae": {"geometry"},
    "metrics": {"geometry", "sae"},
    "activations": {"geometry"},
    "information": set(),
    "conditioning": {"activations"},
    "units": {"geometry", "sae", "activations"},
    "checks": {"geometry", "sae", "metrics", "units", "activations", "information", "conditioning"},
    "training": {"geometry", "sae", "metrics", "units", "checks", "activations"},
    "tuning": {"activations", "conditioning"},
    "commands": {"training", "checks", "units", "activations", "sae", "information", "conditioning", "tuning"},
}
FRAMEWORKS = {"lightning", "torchmetrics", "mlflow", "transformers", "zarr", "pytorch_lightning"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "atoms":
                found |= {f"atoms.{alias.name}" for alias in node.names}
    return found


def frameworks_in(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)} & FRAMEWORKS


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_lies_before_them(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        inner = {name.split(".")[1] for name in imports(file) if name.startswith("atoms.")}
        rooms = inner & MAY_IMPORT.keys()
        assert rooms <= MAY_IMPORT[room] | {room}, file


@pytest.mark.parametrize("room", ["geometry", "sae", "units", "information", "conditioning"])
def test_mathematics_imports_no_framework(room):
    """Neither itself nor by a file that lies beside the rooms."""
    beside = {f"atoms.{file.stem}" for file in ROOT.glob("*.py") if frameworks_in(file)}
    assert "atoms.silent_trainer" in beside
    for file in (ROOT / room).rglob("*.py"):
        assert not frameworks_in(file), file
        assert not imports(file) & beside, file


def test_of_the_checks_only_the_pass_over_the_rows_knows_lightning():
    """The sums of ranks are torchmetrics; nothing else of a framework is in them."""
    for file in (ROOT / "checks").rglob("*.py"):
        used = frameworks_in(file)
        assert used <= ({"lightning"} if file.name == "certify.py" else {"torchmetrics"}), file


def test_every_module_has_a_docstring():
    for file in ROOT.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), file
