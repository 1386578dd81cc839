"""MLflow as the place where runs of different sizes, layers and seeds are compared."""

import os
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

# MLflow announces every schema migration of a fresh database and Lightning every new experiment.
for _noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "lightning.pytorch.loggers.mlflow"):
    getLogger(_noisy).setLevel("ERROR")

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
    """

    rows_per_step: int = 1
    """Rows one optimizer step consumes over all ranks; set by the module, so that curves of runs with different
    batch sizes share their x axis."""

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
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
        if uri.startswith(_SQLITE):
            uri = f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            tracking_uri=uri,
            tags=tags,
            artifact_location=artifact_location,
            run_id=run_id,
            synchronous=synchronous,
        )
        self.run_name = run_name

    @property
    def tracking_uri(self) -> str:
        """Where runs are kept, said so that it holds from any working directory."""
        return str(self._tracking_uri)

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
        super().log_metrics(metrics, rows)

    @rank_zero_only
    def log_figure(self, figure: Figure, name: str) -> None:
        """Store ``figure`` under ``figures/<name>.png`` of the run."""
        self.experiment.log_figure(self.run_id, figure, f"figures/{name}.png")

    @rank_zero_only
    def log_text(self, text: str, name: str) -> None:
        """Store ``text`` as the artifact ``name`` of the run."""
        self.experiment.log_text(self.run_id, text, name)

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
