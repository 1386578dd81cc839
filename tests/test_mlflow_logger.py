"""The MLflow logger: where it writes, at which step, and which run it goes on with."""

import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from atoms.training.mlflow_logger import AtomsMLFlowLogger, child_run


@pytest.fixture
def logger(database):
    return AtomsMLFlowLogger(synchronous=True)


def history(database, logger, name) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in database.get_metric_history(logger.run_id, name)]


def test_default_is_a_database_here_that_holds_from_anywhere(tmp_path, monkeypatch, database):
    assert AtomsMLFlowLogger().tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert (
        AtomsMLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").tracking_uri
        == f"sqlite:///{tmp_path}/mlflow.db"
    )
    shutil.copy("mlflow.db", "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert AtomsMLFlowLogger().tracking_uri == f"sqlite:///{tmp_path}/other.db"


def test_steps_become_rows_seen(database, logger):
    logger.rows_per_step = 256
    logger.log_metrics({"a": 1.0, "epoch": 3}, 0)
    logger.log_metrics({"a": 2.0}, 9)
    logger.log_metrics({"epoch": 3}, 10)
    logger.log_at({"a": 3.0}, 5000)
    assert history(database, logger, "a") == [(256, 1.0), (2560, 2.0), (5000, 3.0)]
    assert not history(database, logger, "epoch")


def test_figures_and_texts_are_artifacts(database, logger):
    logger.log_figure(Figure(), "empty")
    logger.log_text("words", "notes.txt")
    folder = Path(database.get_run(logger.run_id).info.artifact_uri)
    assert (folder / "figures/empty.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "notes.txt").read_text() == "words"


def test_reattached_run_runs_again_and_keeps_its_history(database, logger):
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    again = AtomsMLFlowLogger(synchronous=True)
    again.reattach(logger.run_id)
    assert database.get_run(logger.run_id).info.status == "RUNNING"
    again.log_metrics({"a": 2.0}, 1)
    again.finalize("success")
    assert again.run_id == logger.run_id
    assert history(database, logger, "a") == [(1, 1.0), (2, 2.0)]
    assert database.get_run(logger.run_id).info.status == "FINISHED"


def test_reattaching_to_nothing_leaves_the_logger_free_to_start_a_run(database, logger):
    with pytest.raises(MlflowException):
        logger.reattach("0" * 32)
    assert logger.run_id != "0" * 32


def test_child_is_nested_in_the_parent_s_experiment(database):
    parent = AtomsMLFlowLogger(experiment_name="question", synchronous=True)
    child = child_run(parent.tracking_uri, parent.run_id, "validate", {"checkpoint": "abc"})
    found = database.get_run(child.run_id)
    assert found.info.experiment_id == parent.experiment_id
    assert found.info.run_name == "validate"
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    assert found.data.tags["checkpoint"] == "abc"


def test_no_database_is_made_for_a_child(tmp_path):
    with pytest.raises(FileNotFoundError):
        child_run(f"sqlite:///{tmp_path}/gone.db", "0" * 32, "validate", {})
    assert not list(tmp_path.iterdir())


def test_numbers_queued_are_there_once_the_run_has_ended(database):
    logger = AtomsMLFlowLogger()
    for step in range(300):
        logger.log_metrics({"a": float(step)}, step)
    logger.finalize("success")
    assert [value for _, value in history(database, logger, "a")] == list(range(300))


def test_a_database_whose_making_was_killed_does_not_stand_in_the_way(tmp_path, monkeypatch):
    """MLflow makes tables one by one and refuses a database that has some of them."""
    for name in (".mlflow.db.partial", ".mlflow.db.partial-journal"):
        (tmp_path / name).write_bytes(b"half of a database")
    monkeypatch.chdir(tmp_path)
    logger = AtomsMLFlowLogger(synchronous=True)
    logger.log_metrics({"x": 1.0}, step=0)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mlflow.db"]
    assert MlflowClient(logger.tracking_uri).get_run(logger.run_id).data.metrics == {"x": 1.0}


def test_a_database_appears_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def killed(*_args, **_keywords):
        seen.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        AtomsMLFlowLogger()
    assert ".mlflow.db.partial" in seen
    assert not list(tmp_path.iterdir())
