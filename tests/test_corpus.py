"""What a cell of a table is, and that the documented examples name what there is."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser

from atoms.activations import Corpus
from atoms.activations.corpus import corpus_files, document_of, token_ids
from atoms.activations.harvest_spec import HarvestSpec
from atoms.errors import AtomsError

EXAMPLES = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[1] / "docs" / "corpora.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_in_the_documentation_can_be_built(example):
    settings = yaml.safe_load(example)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--harvest", type=HarvestSpec)
    harvest = {"model": {"name": "m"}, "sites": ["resid_post.0"], **settings.get("harvest", settings)}
    spec = parser.instantiate_classes(parser.parse_object({"harvest": harvest})).harvest
    assert isinstance(spec.corpus, Corpus)
    assert type(spec.corpus).__name__ in harvest["corpus"]["class_path"]


def test_every_corpus_is_documented():
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize("value", ["", " \n", None, []])
def test_an_empty_cell_is_no_document(value):
    assert document_of("name", value, "here") is None


def test_what_a_cell_holds_says_what_the_document_is():
    assert document_of("name", " text ", "here", "key").text == "text"
    turn = {"role": "user", "content": "hi"}
    document = document_of("name", [{**turn, "tool": None}], "here", "key")
    assert (document.messages, document.group) == ((turn,), "key")
    document = document_of("name", [3, 4], "here", "key")
    assert (document.ids.tolist(), document.ids.dtype, document.group) == ([3, 4], np.int32, "key")


@pytest.mark.parametrize("values", [[2**31], [-(2**31) - 1], [2**63], [0.5]])
def test_numbers_that_are_no_ids(values):
    with pytest.raises(AtomsError, match=r"here holds .* which are no token ids"):
        token_ids(np.array(values), "here")
    assert token_ids(np.array([-100, 2**31 - 1]), "here").tolist() == [-100, 2**31 - 1]


def test_files_of_any_case_below_a_folder(tmp_path):
    for name in ("a.TXT", "b.txt", "c.md"):
        (tmp_path / name).write_text(name)
    assert [name for name, _ in corpus_files([str(tmp_path)], {".txt"})] == ["a.TXT", "b.txt"]
    assert [name for name, _ in corpus_files([str(tmp_path / "c.md")], {".txt"})] == ["c.md"]
    with pytest.raises(AtomsError, match=r"corpus\.paths: no \.bin or \.npy file matches '.*'; give a file, folder"):
        corpus_files([str(tmp_path)], {".npy", ".bin"})
