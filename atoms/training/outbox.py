"""What a tracking server has still to be told: in memory for a moment, on disk where it does not answer.

``python -m atoms.training.outbox FILE`` sends what was kept, once the server is back.
"""

import argparse
import base64
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from atoms.errors import AtomsError

Record = dict[str, Any]
"""Plain JSON values under one key: ``metrics``, ``params``, ``tag``, ``file`` or ``end``."""

RETRY_SECONDS = 30.0
"""Until the first new try; every failure doubles it, up to twenty times as long."""
_AT_ONCE = 1000  # metrics of one request; MLflow refuses more
_SQLITE = "sqlite:///"

# MLflow would try for four minutes, each time anew; records wait here instead, and nobody for them.
for _name, _value in {"MAX_RETRIES": "1", "TIMEOUT": "20"}.items():
    os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{_name}", _value)


def metrics(values: Iterable[tuple[str, float]], step: int) -> Record:
    """A record of numbers at a step, now."""
    return {"metrics": [[name, value, time.time_ns() // 10**6, step] for name, value in values]}


def params(values: dict[str, Any]) -> Record:
    """A record of parameters; MLflow keeps them as text."""
    return {"params": {name: str(value)[:250] for name, value in values.items()}}


def tag(name: str, value: str) -> Record:
    """A record of a tag."""
    return {"tag": [name, value]}


def file(name: str, content: bytes) -> Record:
    """A record of an artifact."""
    return {"file": [name, base64.b64encode(content).decode()]}


def end(status: str) -> Record:
    """A record of the run's end: FINISHED, FAILED or KILLED."""
    return {"end": [status, time.time_ns() // 10**6]}


class Sender:
    """Delivers records to a run.

    Args:
        client: Of the tracking store.
        run_id: The run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        uri = str(client.tracking_uri)
        self.database = Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None
        self._inode = self._database_inode()

    def __call__(self, record: Record) -> None:
        """Send one record, and wait until it is there.

        Raises:
            Exception: Whatever MLflow or the network raise.
        """
        if self._database_inode() != self._inode:
            # SQLite would go on writing to a file that has no name any more
            raise FileNotFoundError(f"{self.database} was deleted or replaced")
        ((kind, value),) = record.items()
        if kind == "metrics":
            for start in range(0, len(value), _AT_ONCE):
                part = [Metric(*one) for one in value[start : start + _AT_ONCE]]
                self.client.log_batch(self.run_id, metrics=part, synchronous=True)
        elif kind == "params":
            self.client.log_batch(self.run_id, params=[Param(*one) for one in value.items()], synchronous=True)
        elif kind == "tag":
            self.client.set_tag(self.run_id, *value)
        elif kind == "file":
            name, content = value
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, Path(name).name)
                path.write_bytes(base64.b64decode(content))
                above = str(Path(name).parent)
                self.client.log_artifact(self.run_id, str(path), None if above == "." else above)
        else:
            self.client.set_terminated(self.run_id, *value)

    def _database_inode(self) -> int | None:
        with contextlib.suppress(OSError):
            return self.database.stat().st_ino if self.database else None
        return -1


class Outbox:
    """Sends records in their order from a thread of its own, so that no step waits for a server.

    Where one cannot be sent, it and all after it are kept in a file, which is tried again now and then; nothing is
    lost and nothing raised.

    Args:
        send: Delivers one record or raises.
        path: The file to keep records in; it may exist from an earlier process, whose records then come first.
        header: First line of the file: what is needed to send it later.
        say: Tells the user that records are being kept.
    """

    def __init__(self, send: Callable[[Record], None], path: Path, header: Record, say: Callable[[str], None]) -> None:
        self.send, self.path, self.header, self.say = send, path, header, say
        self.waiting = len(_lines(path)) - 1 if path.exists() else 0
        """Records that lie in the file."""
        self._queue: list[Record] = []
        self._busy = False
        self._told = False
        self._retry_at, self._pause = 0.0, RETRY_SECONDS
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, record: Record) -> None:
        """Take a record; it is sent, or kept on disk, before :meth:`settle` returns."""
        with self._changed:
            self._queue.append(record)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mlflow-outbox", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait until every record is sent or lies on the disk."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._busy)

    def flush(self) -> None:
        """Settle, and try once more what has been kept; say where it lies if that fails."""
        self.settle()
        if self.waiting and not self._resend():
            self.say(
                f"{self.waiting} records of the run are kept in {self.path}; once the server answers, send them with "
                f"`python -m atoms.training.outbox {self.path}`"
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._queue))
                batch, self._queue, self._busy = _merged(self._queue), [], True
            if self.waiting and time.monotonic() >= self._retry_at:
                self._resend()
            for number, record in enumerate(batch):
                try:
                    if self.waiting:  # the order is kept
                        self._keep(batch[number:])
                        break
                    self.send(record)
                except Exception as error:
                    self._tell(error)
                    self._keep(batch[number:])
                    break

    def _tell(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, 20 * RETRY_SECONDS)
        if not self._told:
            self._told = True
            self.say(f"not logged for now ({short(error)}): the run goes on and its records are kept in {self.path}")

    def _keep(self, records: list[Record]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(record) + "\n" for record in ([] if self.path.exists() else [self.header]) + records]
            with self.path.open("a", encoding="utf-8") as out:
                out.writelines(lines)
                out.flush()
                os.fsync(out.fileno())
            self.waiting += len(records)
        except OSError as error:
            self.say(f"{len(records)} records are lost: {self.path} cannot be written ({error.strerror})")

    def _resend(self) -> bool:
        """Send what lies in the file; delete it when all of it is there."""
        try:
            for record in _lines(self.path)[1:]:
                self.send(record)
        except Exception as error:
            self._tell(error)
            return False
        self.path.unlink(missing_ok=True)
        self.waiting, self._told, self._pause = 0, False, RETRY_SECONDS
        return True


def _merged(records: list[Record]) -> list[Record]:
    """Join runs of metrics, so that a backlog takes few requests."""
    out: list[Record] = []
    for record in records:
        if out and "metrics" in record and "metrics" in out[-1]:
            out[-1] = {"metrics": out[-1]["metrics"] + record["metrics"]}
        else:
            out.append(record)
    return out


def _lines(path: Path) -> list[Record]:
    """Records of a file; a last line that a kill cut short is none."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def short(error: Exception) -> str:
    """The first line of an error, cut: MLflow quotes whole requests."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:120]}{'…' if len(first) > 120 else ''}"


def main(words: list[str] | None = None) -> None:
    """Send a file of kept records to the run they belong to, and delete it.

    Raises:
        AtomsError: If there is no such file, or the server does not take them; the file stays then.
    """
    parser = argparse.ArgumentParser(
        prog="python -m atoms.training.outbox", description="Send kept records to their run."
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--tracking_uri", help="another address of the same server")
    given = parser.parse_args(words)
    try:
        header, *records = _lines(given.file)
        uri, run_id = given.tracking_uri or header["tracking_uri"], header["run_id"]
    except (OSError, ValueError, KeyError) as error:
        raise AtomsError(f"{given.file} holds no kept records: name the file that `atoms fit` named") from error
    try:
        client = MlflowClient(uri)
        client.get_run(run_id)
        send = Sender(client, run_id)
        for record in records:
            send(record)
    except Exception as error:
        raise AtomsError(
            f"{given.file}: {uri} did not take the records ({short(error)}): see that it runs and try again"
        ) from error
    given.file.unlink()
    print(f"sent     {len(records)} records to run {run_id} in {uri}")


if __name__ == "__main__":
    try:
        main()
    except AtomsError as error:
        print(f"atoms: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
