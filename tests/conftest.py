"""Small models, corpora and stores that several test files share; everything is made here, nothing is fetched."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import tiny_models
import torch
from families import tiny
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from servers import S3, Server, environment, make_bucket, running
from stores import make_store
from tiny_models import WORDS

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import SITE, PlantedSpec, plant
from atoms.activations.site_rows import SiteRows
from atoms.cli import main

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # nothing here is large enough for two


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process a core, at most four; only this one where all tests are of one file, which starts sooner so."""
    files = {argument.partition("::")[0] for argument in config.args}
    return 0 if len(files) == 1 and Path(files.pop()).is_file() else min(4, os.cpu_count() or 1)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """The command chooses the process's matrix product; no later test may compute with what an earlier one chose."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a directory of its own, so that nothing it writes can meet another's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it for the rest of the process


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a tiny model of any family with its tokenizer in a folder; keywords change its configuration."""

    def make(family: str, special: str | None = "bos", **changes: object) -> Path:
        folder = tmp_path / family
        tiny(family, vocab_size=len(WORDS) + 5, **changes).save_pretrained(folder)
        tiny_models.write_tokenizer(folder, special)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three blocks and width 16 with random weights, and its tokenizer."""
    return tiny_models.write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def own_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    """A tiny BERT of one's own to spoil, in a folder named ``model``."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of three blocks and width 16 with random weights, and its tokenizer."""
    return tiny_models.write_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents of random words, no two alike."""
    return tiny_models.write_text(tmp_path_factory.mktemp("text"), 60)


@pytest.fixture(scope="session")
def much_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many rows as make several training blocks of one MiB."""
    folder = tmp_path_factory.mktemp("much")
    picks = torch.randint(0, 200, (400, 55), generator=torch.Generator().manual_seed(2))
    for number, row in enumerate(picks.tolist()):
        (folder / f"{number:03}.txt").write_text(" ".join(f"w{pick}" for pick in row))
    return folder


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store of two sites, never to be changed."""
    return make_store(tmp_path_factory.mktemp("pristine") / "store")


@pytest.fixture
def own_store(pristine: Path, tmp_path: Path) -> Path:
    """A store of one's own to spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "store"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server on this machine with a bucket named ``bucket``."""
    with running(tmp_path_factory.mktemp("s3"), "-c", S3) as server:
        make_bucket(server, "bucket")
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty prefix; the environment says how to reach it."""
    for name, value in environment(s3_server).items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{uuid4().hex}"


@pytest.fixture(scope="session")
def web_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A plain web server on this machine, and the folder it serves."""
    folder = tmp_path_factory.mktemp("web")
    with running(
        tmp_path_factory.mktemp("web-log"), str(Path(__file__).with_name("servers.py")), str(folder)
    ) as server:
        yield server, folder


@pytest.fixture(scope="session")
def planted_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store of 6,000 planted rows of width 16 with 24 atoms."""
    path = tmp_path_factory.mktemp("planted") / "store"
    plant(PlantedSpec(width=16, atoms=24, active=2.0, rows=6000), path)
    return path


@pytest.fixture
def planted_data(planted_store: Path) -> Callable[..., ActivationDataModule]:
    """Make a datamodule over the planted store."""

    def make(**settings: object) -> ActivationDataModule:
        return ActivationDataModule(store=str(planted_store), **{"batch_size": 256, "pool_mib": 8, **settings})  # type: ignore[arg-type]

    return make


@pytest.fixture
def train(planted_data: Callable[..., ActivationDataModule]) -> SiteRows:
    """The training rows of the planted store."""
    return SiteRows(planted_data(), SITE, "train")


@pytest.fixture
def held_out(planted_data: Callable[..., ActivationDataModule]) -> torch.Tensor:
    """The first 300 held-out rows of the planted store."""
    return next(SiteRows(planted_data(), SITE, "val").batches(300))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> MlflowClient:
    """The client of an empty ``mlflow.db`` in the test's directory."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


@dataclass(frozen=True)
class Fitted:
    """A fit of 54 steps that has ended, with a checkpoint of every tenth step and of the last; never to be changed."""

    folder: Path
    words: list[str]
    out: str
    err: str
    run: Run

    @property
    def last(self) -> str:
        """The checkpoint of the last weights."""
        return self.at(54)

    def at(self, step: int) -> str:
        """The checkpoint of a step."""
        (path,) = self.folder.glob(f"runs/*/*/checkpoints/step-{step:07d}.ckpt")
        return str(path)


@pytest.fixture(scope="session")
def fit_words(planted_store: Path) -> list[str]:
    """The command line of a small fit: 40 atoms, three epochs of 18 steps."""
    settings = {
        "data.store": planted_store, "data.batch_size": 256, "data.pool_mib": 1, "model.expansion": 2.5,
        "model.target_l0": 2, "model.power": 0.5, "model.error_power": 0.5, "model.encoder": "aligned",
        "model.lr": 2e-3, "trainer.max_epochs": 3, "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 10,
    }  # fmt: skip
    return ["fit", *(f"--{name}={value}" for name, value in settings.items())]


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, fit_words: list[str]) -> Fitted:
    """The small fit, done once."""
    folder = tmp_path_factory.mktemp("fitted")
    shutil.copy(empty_database, folder / "mlflow.db")
    words = [*fit_words, "--checkpoint.every_n_train_steps=10", "--checkpoint.save_top_k=-1"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(pytest.MonkeyPatch.context()).delenv("MLFLOW_TRACKING_URI", raising=False)
        main(words)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("atoms").experiment_id])
    return Fitted(folder, words, out.getvalue(), err.getvalue(), run)
