"""The certificate as a file."""

import json
from pathlib import Path

import jsonschema
import pytest
from certificates import certificate

import atoms
from atoms.checks.certificate import FILE, Certificate, schema
from atoms.checks.claim import Verdict
from atoms.errors import AtomsError


def test_reads_what_it_wrote(tmp_path):
    written = certificate()
    assert written.save(tmp_path / "deep" / "er") == tmp_path / "deep" / "er" / FILE
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == [FILE]
    for path in (tmp_path / "deep" / "er", tmp_path / "deep" / "er" / FILE):
        found = Certificate.load(path)
        assert found.to_json() == written.to_json()
        assert found.section("uniqueness").numbers["refit"] != found.section("uniqueness").numbers["refit"]
        assert found.claims()["uniqueness.t3"].verdict is Verdict.UNATTAINABLE
        assert found.claims()["uniqueness.t3"].value is None


def test_numbers_leave_out_what_does_not_exist():
    assert certificate().numbers() == {"joint/f": 0.9, "joint/f_null": 0.0, "uniqueness/mu": 0.4}


def test_section_that_is_not_there():
    with pytest.raises(KeyError):
        certificate().section("stability")


def test_fits_the_published_schema():
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(certificate().to_json()), schema())


def test_schema_is_the_one_in_the_documentation():
    published = Path(atoms.__file__).parents[1] / "docs" / "certificate.schema.json"
    assert json.loads(published.read_text()) == schema()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.pop("sentence"),
        lambda content: content.update(more=1),
        lambda content: content["sections"][0]["claims"][0].update(verdict="proved"),
        lambda content: content["unit"].update(atoms=3.5),
        lambda content: content["sections"][0]["numbers"].update(f="high"),
        lambda content: content.update(sections={}),
    ],
)
def test_schema_and_reader_refuse_alike(spoil, tmp_path):
    content = json.loads(certificate().to_json())
    spoil(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema())
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(AtomsError, match=r"not laid out as a certificate .*: judge the unit again"):
        Certificate.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"schema": "other", "version": 1}, "its schema is not 'atoms-certificate'"),
        ({"schema": "atoms-certificate", "version": 7}, "certificate of version 7, but this atoms reads 1"),
        ([], "not a certificate of atoms"),
    ],
)
def test_other_schemas_are_named(content, said, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(AtomsError, match=said):
        Certificate.load(tmp_path)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(AtomsError, match="cannot be read"):
        Certificate.load(tmp_path / "none.json")
    (tmp_path / FILE).write_text("{")
    with pytest.raises(AtomsError, match="not JSON"):
        Certificate.load(tmp_path)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AtomsError, match=r"output is .*file.*, which cannot be written"):
        certificate().save(tmp_path / "file")
