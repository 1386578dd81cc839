"""Records for a tracking server: sent in order, or kept until they can be."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from atoms.cli import main
from atoms.errors import AtomsError
from atoms.training import outbox
from atoms.training.mlflow_logger import AtomsMLFlowLogger
from atoms.training.outbox import Outbox

HEADER = {"tracking_uri": "http://nowhere", "run_id": "0"}


class Server:
    """Takes records while it is up."""

    def __init__(self):
        self.up, self.taken = True, []

    def __call__(self, record):
        if not self.up:
            raise ConnectionError("refused\nand much more")
        self.taken.append(record)

    @property
    def numbers(self):
        return [value for record in self.taken for _, value, _, _ in record.get("metrics", [])]


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def said():
    return []


@pytest.fixture
def box(server, said, tmp_path):
    return Outbox(server, tmp_path / "kept.jsonl", HEADER, said.append)


def number(value: float) -> outbox.Record:
    return outbox.metrics([("a", value)], 1)


class TestOutbox:
    """Order and completeness, whatever the server does."""

    def test_sends_in_order_and_leaves_nothing(self, box, server, said):
        records = [number(1), outbox.tag("b", "c"), number(2), outbox.params({"d": 3}), outbox.end("FINISHED")]
        for record in records:
            box.put(record)
        box.flush()
        assert [next(iter(record)) for record in server.taken] == ["metrics", "tag", "metrics", "params", "end"]
        assert server.numbers == [1, 2]
        assert not said
        assert not box.path.exists()

    def test_keeps_what_is_not_taken_and_says_so_once(self, box, server, said):
        server.up = False
        for value in range(5):
            box.put(number(value))
            box.settle()
        assert len(said) == 1
        assert said[0].startswith("not logged for now (ConnectionError: refused): the run goes on and its records are")
        header, *lines = box.path.read_text().splitlines()
        assert json.loads(header) == HEADER
        assert [json.loads(line)["metrics"][0][1] for line in lines] == list(range(5))
        box.flush()
        assert said[-1].startswith(f"5 records of the run are kept in {box.path}; once the server answers, send them")

    def test_sends_what_it_kept_once_the_server_is_back(self, box, server):
        server.up = False
        box.put(number(0))
        box.settle()
        server.up = True
        box.put(number(1))
        box.flush()
        assert server.numbers == [0, 1]
        assert not box.path.exists()

    def test_goes_on_with_what_an_earlier_process_kept(self, box, server, said, tmp_path):
        server.up = False
        box.put(number(0))
        box.settle()
        with box.path.open("a") as file:
            file.write('{"metrics": [["a", 9')  # killed while writing
        server.up = True
        later = Outbox(server, box.path, HEADER, said.append)
        later.put(number(1))
        later.flush()
        assert server.numbers == [0, 1]

    def test_disk_that_takes_nothing_either_is_said(self, server, said, tmp_path):
        (tmp_path / "file").write_text("")
        box = Outbox(server, tmp_path / "file" / "kept.jsonl", HEADER, said.append)
        server.up = False
        box.put(number(0))
        box.settle()
        assert said[-1].startswith("1 records are lost: ")

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.sampled_from(["put", "down", "up", "settle", "flush", "restart"]), max_size=30))
    def test_every_record_arrives_once_and_in_order(self, tmp_path_factory, events):
        server, path, count = Server(), tmp_path_factory.mktemp("box") / "kept.jsonl", 0
        box = Outbox(server, path, HEADER, lambda line: None)
        for event in events:
            if event == "put":
                box.put(number(count))
                count += 1
            elif event in ("up", "down"):
                box.settle()
                server.up = event == "up"
            elif event == "restart":
                box.settle()
                box = Outbox(server, path, HEADER, lambda line: None)
            else:
                getattr(box, event)()
        box.settle()
        server.up = True
        box.flush()
        assert server.numbers == list(range(count))
        assert not path.exists()


class TestLogger:
    """The logger over it, with MLflow's own client and database."""

    @pytest.fixture
    def lost(self, monkeypatch):
        """A switch that makes the client fail as it does where a server is gone."""

        def refuse(*args, **kwargs):
            raise MlflowException("API request failed: connection refused")

        def switch():
            for name in ("log_batch", "set_tag", "log_artifact", "set_terminated", "get_run"):
                monkeypatch.setattr(MlflowClient, name, refuse)

        return switch

    def history(self, database, run_id, name="a"):
        return [(point.step, point.value) for point in database.get_metric_history(run_id, name)]

    def test_lost_amid_a_run_and_sent_by_hand(self, database, lost, capsys):
        logger = AtomsMLFlowLogger()
        logger.log_metrics({"a": 1.0}, 0)
        logger.settle()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", raises)
            patch.setattr(MlflowClient, "set_terminated", raises)
            logger.log_metrics({"a": 2.0}, 1)
            logger.log_tag("b", "c")
            logger.log_text("words", "deep/notes.txt")
            logger.finalize("success")
        said = capsys.readouterr().err
        (kept,) = Path("runs").iterdir()
        assert f"python -m atoms.training.outbox {kept}" in said
        assert self.history(database, logger.run_id) == [(1, 1.0)]
        outbox.main([str(kept)])
        assert capsys.readouterr().out == f"sent     4 records to run {logger.run_id} in {logger.tracking_uri}\n"
        run = database.get_run(logger.run_id)
        assert self.history(database, logger.run_id) == [(1, 1.0), (2, 2.0)]
        assert run.data.tags["b"] == "c"
        assert run.info.status == "FINISHED"
        assert Path(run.info.artifact_uri, "deep/notes.txt").read_text() == "words"
        assert not list(Path("runs").iterdir())

    def test_fit_goes_on_without_its_server_and_loses_no_number(self, fit_words, fitted, database, capsys):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("log_batch", "set_tag", "log_artifact", "set_terminated"):
                patch.setattr(MlflowClient, name, raises)
            main(fit_words)
        said = capsys.readouterr()
        assert "R² centred, raw" in said.out
        assert said.err.count("note     mlflow: not logged for now") == 1
        (kept,) = Path("runs").glob("*.jsonl")
        outbox.main([str(kept)])
        (run,) = database.search_runs([database.get_experiment_by_name("atoms").experiment_id])
        assert run.data.metrics == fitted.run.data.metrics
        assert run.data.params == fitted.run.data.params
        assert run.info.status == "FINISHED"
        figures = {path.name for path in Path(run.info.artifact_uri, "figures").iterdir()}
        assert len(figures) == 4

    def test_database_deleted_amid_a_run_is_noticed(self, database, capsys):
        logger = AtomsMLFlowLogger(synchronous=True)
        logger.log_metrics({"a": 1.0}, 0)
        Path("mlflow.db").unlink()
        logger.log_metrics({"a": 2.0}, 1)
        assert "mlflow.db was deleted or replaced" in capsys.readouterr().err
        assert len(list(Path("runs").iterdir())) == 1

    def test_database_that_is_none_is_refused(self, fit_words, capsys):
        Path("mlflow.db").write_text("not a database, but long enough to have a header of one " * 10)
        with pytest.raises(SystemExit) as stop:
            main(fit_words)
        assert stop.value.code == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("atoms: error: trainer.logger: sqlite:///")

    def test_server_that_never_answered_gives_way_to_a_database(self, database, capsys):
        """Connection refused from the start."""
        shutil.move("mlflow.db", "runs.db")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # nobody listens
            uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
            logger = AtomsMLFlowLogger(tracking_uri=uri)
            Path("runs").mkdir()
            shutil.move("runs.db", "runs/mlflow.db")
            logger.log_metrics({"a": 1.0}, 0)
        logger.finalize("success")
        assert logger.tracking_uri == f"sqlite:///{Path('runs/mlflow.db').absolute()}"
        assert f"{uri} does not answer" in capsys.readouterr().err
        assert self.history(MlflowClient(logger.tracking_uri), logger.run_id) == [(1, 1.0)]


def raises(*args, **kwargs):
    raise MlflowException("API request to http://127.0.0.1:5000 failed: connection refused")


class TestMain:
    """``python -m atoms.training.outbox``."""

    def test_nothing_there(self):
        with pytest.raises(AtomsError, match="holds no kept records"):
            outbox.main(["nowhere.jsonl"])

    def test_server_still_gone(self, database):
        header = {"tracking_uri": f"sqlite:///{Path('mlflow.db').absolute()}", "run_id": "0" * 32}
        Path("kept.jsonl").write_text(json.dumps(header) + "\n" + json.dumps(number(1)) + "\n")
        with pytest.raises(AtomsError, match="did not take the records"):
            outbox.main(["kept.jsonl"])
        assert Path("kept.jsonl").exists()


@pytest.mark.slow
def test_real_server_killed_amid_a_fit(fit_words, fitted, tmp_path):
    """MLflow's own server on loopback; killed after the first epoch, started anew when the fit has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination", str(tmp_path / "artifacts"), "--port", str(port), "--workers", "1",
    ]  # fmt: skip

    def serve():
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                MlflowClient(uri).search_experiments()
                return process
            except MlflowException:
                time.sleep(0.5)
        raise TimeoutError("mlflow server did not start")

    def stop(process):
        os.killpg(process.pid, 9)
        process.wait()

    process = serve()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(Path(__file__).parents[1])}
    fit = subprocess.Popen(
        [sys.executable, "-m", "atoms", *fit_words], env=environment, stderr=subprocess.PIPE, text=True
    )
    said = ""
    for line in fit.stderr:
        said += line
        if line.startswith("epoch 1"):
            stop(process)
            break
    said += fit.stderr.read()
    assert fit.wait() == 0, said
    (kept,) = Path("runs").glob("*.jsonl")
    assert f"python -m atoms.training.outbox {kept}" in said
    process = serve()
    try:
        outbox.main([str(kept)])
        client = MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("atoms").experiment_id])
        assert run.info.status == "FINISHED"
        assert run.data.metrics == fitted.run.data.metrics
    finally:
        stop(process)
