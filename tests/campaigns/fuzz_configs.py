"""Random and mutated configs and command lines: whatever is asked for, the user gets one line and no mess.

Every case runs ``atoms.cli.main`` in a forked process, in a directory with a small store, a matrix and a checkpoint.
A case is a function of its number and the seed, so a failure is run again with ``--only NUMBER``. What must hold:

- no exception but ``SystemExit`` leaves ``main``, and the status is 0, 1, 2 (unknown command) or 130;
- where it is not 0, standard error ends in its only line that begins with ``atoms: error: ``, standard output is empty,
  and the directory holds what it held before (a store that was finished before the fault may stay, and so may the empty
  folder of stores and what MLflow keeps of a failed run);
- no class path outside the list is imported.

    python tests/campaigns/fuzz_configs.py --cases 10000
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fuzz_cases import EVIL, Case, case_of

from atoms.activations.planted import PlantedSpec, plant
from atoms.cli import main

SECONDS = 20
"""Most time one case may take."""
BATCH = 50


class Result(NamedTuple):
    """What came of it."""

    number: int
    kind: str
    words: list[str]
    code: int | None
    fault: str | None
    said: str


def prepare(folder: Path) -> None:
    """Make what the cases work on: a store, a matrix, a checkpoint, a module that leaves a mark when imported."""
    plant(PlantedSpec(width=8, atoms=12, active=2.0, rows=400), folder / "store")
    generator = np.random.default_rng(0)
    np.save(folder / "acts.npy", generator.standard_normal((300, 8)).astype(np.float32))
    np.save(folder / "docs.npy", np.arange(300) // 5)
    modules = folder.with_name(f"{folder.name}-modules")
    modules.mkdir()
    (modules / f"{EVIL}.py").write_text(
        f"import lightning, pathlib\npathlib.Path({str(folder / 'EVIL')!r}).write_text('imported')\n"
        "class Callback(lightning.Callback): pass\ndef run(*a, **k): pass\n"
    )
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(["fit", "--data.store=store", "--data.batch_size=64", "--data.lanes=4", "--model.target_l0=2",
              "--model.expansion=2", "--trainer.max_epochs=1", "--trainer.logger=false",
              "--trainer.accelerator=cpu"])  # fmt: skip
    (saved,) = folder.glob("runs/**/*.ckpt")
    saved.rename(folder / "last.ckpt")
    shutil.rmtree(folder / "runs")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below with size and time of change; folders have neither."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (state.st_size, state.st_mtime_ns)
    return found


def finished_store(path: str, folder: Path) -> bool:
    """Whether a path belongs to a store that is whole: what was made before the fault is of use to the next try."""
    place = folder / path
    above = any((parent / "complete.json").exists() for parent in [place, *place.parents])
    return above or (place.is_dir() and any(place.rglob("complete.json")))


class Overrun(BaseException):
    """A case took too long."""


def _overrun(*_: object) -> None:
    raise Overrun


def run_case(case: Case, folder: Path) -> tuple[int | None, str | None, str]:
    """Run a case and judge it.

    Returns:
        Exit status, what was wrong (None if nothing was), and what the user was told.
    """
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    before = snapshot(folder)
    out, err, code, fault = io.StringIO(), io.StringIO(), 0, None
    signal.signal(signal.SIGALRM, _overrun)
    signal.alarm(SECONDS)
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(case.words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Overrun:
        code, fault = None, "took too long"
    except BaseException as error:
        code, fault = None, "".join(traceback.format_exception(error)[-6:])
    finally:
        signal.alarm(0)
    said = err.getvalue()
    fault = fault or _judge(code, out.getvalue(), said)
    after = snapshot(folder)
    if "EVIL" in after:
        fault = "a forbidden module was imported"
    changed = [path for path in before if after.get(path) != before[path]]
    left = [path for path in after if path not in before]
    if code != 0 and fault is None:
        # MLflow makes its database when the logger is built, and keeps what a failed run had to say.
        kept = ("mlflow.db", "mlruns")
        mess = [path for path in left if path.split("/")[0] not in kept and not finished_store(path, folder)]
        if mess == ["activations"]:  # the empty folder in which the lock of a store was
            mess = []
        if changed or mess:
            fault = f"left behind {mess[:5]}, changed {changed[:5]}"
    elif changed:
        fault = fault or f"changed {changed[:5]}"
    for path in sorted(left, reverse=True):
        found = folder / path
        with contextlib.suppress(OSError):
            found.rmdir() if found.is_dir() and not found.is_symlink() else found.unlink()
    for name in case.files:
        (folder / name).unlink(missing_ok=True)
    return code, fault, said


def _judge(code: int | None, out: str, err: str) -> str | None:
    if "Traceback" in err:
        return "a traceback"
    if code not in (0, 1, 2, 130):
        return f"status {code}"
    errors = [line for line in err.splitlines() if line.startswith("atoms: error: ")]
    if code == 0:
        return f"status 0 and an error: {errors[0]}" if errors else None
    lines = err.splitlines()
    if len(errors) != 1 or lines[-1] != errors[0]:
        return f"status {code}, but {len(errors)} error lines, and the last line is {lines[-1] if lines else ''!r}"
    if not errors[0].removeprefix("atoms: error: ").strip():
        return "an empty error"
    if any(ord(c) < 32 or ord(c) == 127 for c in errors[0]):
        return "a control character reaches the terminal"
    if len(errors[0]) > 3000:
        return f"a line of {len(errors[0])} characters"
    return f"printed {out[:80]!r} and failed" if out else None


def _child(numbers: Iterable[int], seed: int, folder: Path, results: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30, 24 * 2**30))  # rather than the machine's
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    warnings.simplefilter("ignore")
    sys.path.insert(0, f"{folder}-modules")
    with results.open("a", encoding="utf-8") as file:
        for number in numbers:
            with contextlib.chdir(folder):
                kind, case = case_of(seed, number)
            file.write(json.dumps({"begun": number, "kind": kind, "words": case.words}) + "\n")
            file.flush()
            code, fault, said = run_case(case, folder)
            file.write(json.dumps(Result(number, kind, case.words, code, fault, said[-3000:])._asdict()) + "\n")
            file.flush()


def run(numbers: list[int], seed: int, folder: Path, tell: Callable[[str], None] = lambda line: None) -> list[Result]:
    """Run cases in forked processes of `BATCH` cases each.

    Args:
        numbers: Which.
        seed: Seed of the campaign.
        folder: An empty directory.
        tell: Is told how far it is.

    Returns:
        One result a case; a case that took its process down has a fault.
    """
    prepare(folder)
    results: list[Result] = []
    queue = list(numbers)
    while queue:
        batch, log = queue[:BATCH], folder.with_name(f"{folder.name}-results.jsonl")
        log.write_text("")
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                _child(batch, seed, folder, log)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        done = [Result(**line) for line in lines if "begun" not in line]
        results += done
        if len(done) < len(batch) and lines:
            last = lines[-1]
            results.append(
                Result(last.get("begun", -1), last["kind"], last["words"], None, f"the process ended: {status}", "")
            )
            done.append(results[-1])
        queue = queue[max(1, len(done)) :]
        tell(f"{len(results)} of {len(numbers)} cases, {sum(r.fault is not None for r in results)} faults")
    return results


def summary(results: list[Result]) -> dict[str, Any]:
    """Counts by kind and status, and every fault."""
    return {
        "cases": len(results),
        "faults": sum(result.fault is not None for result in results),
        "status": dict(Counter(str(result.code) for result in results)),
        "kinds": dict(Counter(result.kind for result in results)),
        "found": [result._asdict() for result in results if result.fault is not None],
    }


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """An empty directory, gone afterwards with what lies beside it."""
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above, "work")
        folder.mkdir()
        yield folder


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the cases to run")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this time")
    asked = parser.parse_args()
    numbers = asked.only or list(range(asked.first, asked.first + asked.cases))
    started, results = time.monotonic(), []
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.argv = ["atoms"]
    for start in range(0, len(numbers), 500):
        with workplace() as folder:
            results += run(numbers[start : start + 500], asked.seed, folder, lambda line: print(line, file=sys.stderr))
        if asked.minutes is not None and time.monotonic() - started > 60 * asked.minutes:
            break
    print(json.dumps(summary(results) | {"seconds": round(time.monotonic() - started)}, indent=1))


if __name__ == "__main__":
    _main()
