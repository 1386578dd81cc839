"""MLflow as the place where runs of different sizes, layers and seeds are compared."""

import contextlib
import fcntl
import io
import os
import sqlite3
import sys
from argparse import Namespace
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from atoms.errors import AtomsError
from atoms.interruption import asked
from atoms.training import outbox
from atoms.training.outbox import Outbox, Record, Sender, short

# MLflow announces every schema migration of a fresh database and Lightning every new experiment.
for _noisy in ("alembic", "mlflow.tracking", "lightning.pytorch.loggers.mlflow"):
    getLogger(_noisy).setLevel("ERROR")
getLogger("mlflow.store.db.utils").setLevel("CRITICAL")  # it prints the traceback of what it raises

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
_SQLITE = "sqlite:///"


class AtomsMLFlowLogger(MLFlowLogger):
    """Lightning's MLflow logger with rows as the step axis, curated parameters, and figures.

    Lightning's own default, a file store, is refused by current MLflow; the default here is a SQLite file that
    ``mlflow ui --backend-store-uri sqlite:///mlflow.db`` opens.

    Args:
        experiment_name: One experiment is one question: the same model, site and corpus.
        run_name: Name shown in the list of runs; what is learnt if empty.
        tracking_uri: Where runs are kept; empty means ``$MLFLOW_TRACKING_URI`` or ``sqlite:///mlflow.db``.
        tags: Searchable notes on the run.
        artifact_location: Where a *new* experiment keeps its files; MLflow decides if empty.
        run_id: Continue this run instead of starting one.
        synchronous: Wait for the database at every log call (about 100 times slower than queueing).

    What cannot be sent is kept and sent later (see `outbox`); no failure of a server ends a fit.
    """

    rows_per_step: int = 1
    """Rows one optimizer step consumes over all ranks; set by the module, so that curves of runs with different
    batch sizes share their x axis."""
    folder: Path = Path("runs")
    """Where records wait for a server that does not answer."""

    def __init__(
        self,
        experiment_name: str = "atoms",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool = False,
    ) -> None:
        uri = _absolute(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI)
        _require_usable(uri)
        try:
            super().__init__(
                experiment_name=experiment_name,
                run_name=run_name,
                tracking_uri=uri,
                tags=tags,
                artifact_location=artifact_location,
                run_id=run_id,
            )
        except Exception as error:  # a database is opened here, a server asked later
            raise _unusable(uri, error) from error
        self.run_name = run_name
        self.synchronous = synchronous
        self._outbox: Outbox | None = None

    @property
    def tracking_uri(self) -> str:
        """Where runs are kept, said so that it holds from any working directory."""
        return str(self._tracking_uri)

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """The client, once the run exists.

        A server that does not answer when a run begins gives way to a database in `folder`.

        Raises:
            AtomsError: If a database cannot be used.
        """
        try:
            return cast("MlflowClient", super().experiment)
        except Exception as error:
            if self._tracking_uri.startswith(_SQLITE):
                raise _unusable(self._tracking_uri, error) from error
            local = _absolute(f"{_SQLITE}{self.folder / 'mlflow.db'}")
            _say(f"{self._tracking_uri} does not answer ({short(error)}): this run is kept in {local} instead")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._tracking_uri, self._mlflow_client = local, MlflowClient(local)
            self._experiment_id = self._run_id = None
            return cast("MlflowClient", self.experiment)

    def put(self, record: Record) -> None:
        """Log a record; it is sent in the order of the calls, or kept on disk until it can be."""
        if self._outbox is None:
            send = Sender(self.experiment, str(self.run_id))
            header = {"tracking_uri": self.tracking_uri, "run_id": self.run_id}
            self._outbox = Outbox(send, self.folder / f"mlflow-{self.run_id}.jsonl", header, _say)
        self._outbox.put(record)
        if self.synchronous:
            self._outbox.settle()

    @rank_zero_only
    def settle(self) -> None:
        """Wait until everything logged is sent or on the disk, where no kill can take it."""
        if self._outbox:
            self._outbox.settle()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars at the number of rows seen after optimizer step ``step``, counted from 0 as Lightning does."""
        # Lightning adds the epoch to every record; beside rows it says nothing.
        kept = {key: value for key, value in metrics.items() if key != "epoch"}
        if kept:
            self.log_at(kept, 0 if step is None else (step + 1) * self.rows_per_step)

    @rank_zero_only
    def log_at(self, metrics: Mapping[str, float], rows: int) -> None:
        """Log scalars at a number of rows seen."""
        self.put(outbox.metrics(((name, float(value)) for name, value in metrics.items()), rows))

    @rank_zero_only
    def log_missing(self, metrics: Mapping[str, float], rows: int) -> None:
        """Log those scalars that the run does not hold yet at a number of rows seen."""
        client, run_id = self.experiment, str(self.run_id)
        missing = {
            name: value
            for name, value in metrics.items()
            if all(point.step != rows for point in client.get_metric_history(run_id, name))
        }
        if missing:
            self.log_at(missing, rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log flat parameters."""
        self.put(outbox.params(vars(params) if isinstance(params, Namespace) else params))

    @rank_zero_only
    def log_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self.put(outbox.tag(name, value))

    @rank_zero_only
    def log_figure(self, figure: Figure, name: str) -> None:
        """Store ``figure`` under ``figures/<name>.png`` of the run."""
        image = io.BytesIO()
        figure.savefig(image, format="png")
        self.log_picture(image.getvalue(), name)

    @rank_zero_only
    def log_picture(self, content: bytes, name: str) -> None:
        """Store a PNG as ``figures/<name>.png`` of the run."""
        self.put(outbox.file(f"figures/{name}.png", content))

    @rank_zero_only
    def log_text(self, text: str, name: str) -> None:
        """Store ``text`` as the artifact ``name`` of the run."""
        self.put(outbox.file(name, text.encode()))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """End the run, and wait until everything is written; a fit that was asked to stop is a killed run."""
        if not self._initialized:
            return
        ends = {"success": "FINISHED", "finished": "FINISHED", "failed": "KILLED" if asked() else "FAILED"}
        self.put(outbox.end(ends[status]))
        assert self._outbox is not None
        self._outbox.flush()

    @rank_zero_only
    def reattach(self, run_id: str) -> None:
        """Continue an earlier run: its history is appended to, its status becomes RUNNING.

        Args:
            run_id: The run's identifier, as stored in the checkpoint.

        Raises:
            MlflowException: If there is no such run.
        """
        MlflowClient(self.tracking_uri).update_run(run_id, status="RUNNING")
        self._run_id = run_id


def child_run(tracking_uri: str, parent_id: str, name: str, tags: Mapping[str, str]) -> AtomsMLFlowLogger:
    """A logger whose run is nested under ``parent_id``, in the same experiment and database.

    Args:
        tracking_uri: Where the parent is kept.
        parent_id: The run that produced what is being judged.
        name: Name of the child.
        tags: Its tags; the parent's identifier is added.

    Raises:
        FileNotFoundError: If the database is gone; MLflow would make an empty one.
        MlflowException: If there is no such run.
    """
    if tracking_uri.startswith(_SQLITE) and not Path(tracking_uri.removeprefix(_SQLITE)).exists():
        raise FileNotFoundError("no such file")
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment(client.get_run(parent_id).info.experiment_id)
    return AtomsMLFlowLogger(
        experiment_name=experiment.name,
        run_name=name,
        tracking_uri=tracking_uri,
        tags={**tags, "mlflow.parentRunId": parent_id},
        synchronous=True,
    )


def _absolute(uri: str) -> str:
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}" if uri.startswith(_SQLITE) else uri


def _require_usable(uri: str) -> None:
    """Look at a database before MLflow does, which would try it for minutes and print a traceback for each try."""
    if not uri.startswith(_SQLITE):
        return
    path = Path(uri.removeprefix(_SQLITE))
    try:
        if path.exists():
            with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
                database.execute("begin immediate")
        elif not os.access(path.parent, os.W_OK):
            raise PermissionError(f"{path.parent} is missing or cannot be written")
        else:
            _create(path)
    except (OSError, sqlite3.Error, MlflowException) as error:
        raise _unusable(uri, error) from error


def _create(path: Path) -> None:
    """Make an empty database that appears whole: one whose making was killed would never open again."""
    partial = path.with_name(f".{path.name}.partial")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # one process makes it, the others find it made
        if path.exists():
            return
        # SQLite would take the journal of a database that a kill left for that of the next.
        left = [partial.with_name(partial.name + suffix) for suffix in ("", "-journal", "-wal", "-shm")]
        for file in left:
            file.unlink(missing_ok=True)
        try:
            MlflowClient(f"{_SQLITE}{partial}").search_experiments(max_results=1)
            os.replace(partial, path)
        finally:
            for file in left:
                file.unlink(missing_ok=True)
    finally:
        os.close(folder)


def _unusable(uri: str, error: Exception) -> AtomsError:
    return AtomsError(
        f"trainer.logger: {uri} cannot be used ({short(error)}): mend or move it, name another with "
        "trainer.logger.init_args.tracking_uri, or set trainer.logger to false"
    )


def _say(line: str) -> None:
    print(f"note     mlflow: {line}", file=sys.stderr, flush=True)
