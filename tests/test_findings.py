"""What a command leaves behind: files, and a run."""

from types import SimpleNamespace

import matplotlib.figure
import pytest
from mlflow.tracking import MlflowClient

from atoms.commands import findings
from atoms.errors import AtomsError

CONTENT = {"found.json": b'{"a": 1}', "table.csv": b"a\n1\n"}


def test_titles_become_names_of_folders():
    assert findings.folder_name("Meta/Llama 3.1 (8B)", "weights") == "meta-llama-3-1-8b"
    assert findings.folder_name("../..", "weights") == "weights"
    assert findings.folder_name("é/é", "problem") == "problem"
    assert len(findings.folder_name("long " * 99, "weights")) == 80


def test_figures_become_files():
    figure = matplotlib.figure.Figure()
    figure.suptitle("\U00013000")  # in no font
    content = findings.png({"map": figure})
    assert set(content) == {"map.png"}
    assert content["map.png"].startswith(b"\x89PNG")


def test_files_are_written_where_the_user_said_or_the_setting_is_named(tmp_path):
    findings.write(tmp_path / "deep" / "er", CONTENT, "deep")
    assert {file.name: file.read_bytes() for file in (tmp_path / "deep" / "er").iterdir()} == CONTENT
    (tmp_path / "file").write_text("")
    with pytest.raises(AtomsError, match=r"^output is here, where nothing can be written \(.*\): name another folder$"):
        findings.write(tmp_path / "file" / "inside", CONTENT, "here")


def settings(tracking_uri):
    return SimpleNamespace(tracking_uri=tracking_uri, experiment="findings")


def logged(where):
    figure = findings.png({"map": matplotlib.figure.Figure()})
    findings.log(settings(where), "weights", {"command": "look"}, {"top": 3}, {"least": 0.5}, CONTENT | figure)


def test_a_run_holds_numbers_texts_and_pictures(empty_database, tmp_path, capsys):
    where = f"sqlite:///{tmp_path / 'runs.db'}"
    (tmp_path / "runs.db").write_bytes(empty_database.read_bytes())
    logged(where)
    client = MlflowClient(where)
    (run,) = client.search_runs([client.get_experiment_by_name("findings").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["command"]) == ("weights", "FINISHED", "look")
    assert (run.data.params["top"], run.data.metrics["look/least"]) == ("3", 0.5)
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    nested = {file.path for name in names for file in client.list_artifacts(run.info.run_id, name)}
    assert {"found.json", "table.csv", "figures/map.png"} <= names | nested
    assert f"logged      run {run.info.run_id} in {where}" in capsys.readouterr().out


def test_no_run_where_none_is_wanted(tmp_path, capsys):
    logged("none")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_logged_is_a_note(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    logged(f"sqlite:///{tmp_path / 'file' / 'runs.db'}")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("note     not logged: tracking_uri: ")
    assert said.err.endswith("name another with --tracking_uri, or set it to none\n")
    assert said.err.count("\n") == 1
