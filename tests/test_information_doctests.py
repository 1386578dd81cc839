"""What docstrings and the page of the information lattice show is what comes out."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import atoms.information

MODULES = [f"atoms.information.{module.name}" for module in pkgutil.iter_modules(atoms.information.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0
    assert bool(result.attempted) == (">>> " in inspect.getsource(module))


def test_examples_of_the_page():
    page = Path(__file__).parents[1] / "docs" / "information.md"
    failed, attempted = doctest.testfile(str(page), module_relative=False)
    assert failed == 0
    assert attempted > 10
