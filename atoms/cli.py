"""The ``atoms`` command: a dispatcher that imports a command only when it is asked for."""

import os
import signal
import sys
import warnings
from collections.abc import Sequence

from atoms import __version__, interruption
from atoms.errors import AtomsError, printable

USAGE = """\
atoms: find the atoms of language models, and prove or refute that they deserve the name

  atoms cache    --config FILE     run the language model over a corpus, write a store of activations
  atoms fit      --config FILE     learn atoms (harvesting first if the store is missing)
  atoms validate --ckpt_path FILE  judge a checkpoint on held-out documents
  atoms test     --config FILE --ckpt_path FILE    the same scores on the test split
  atoms predict  --config FILE --ckpt_path FILE    sparse codes of every row, written to a Zarr group
  atoms information --config FILE  what atoms, columns or components tell, and whether they determine it
  atoms conditioning --model NAME | --file PATH...    condition numbers of weights, and a model's sites in their order
  atoms tune     --config FILE     fine-tune a causal model by several recipes; what each learns and forgets
  atoms store    info|ls|verify PATH               what a store holds, where stores are, whether one is whole
  atoms sites    --model NAME      the places of a model that can be harvested, with their widths

  atoms COMMAND --help             every setting of a command
  atoms COMMAND --allow_import PACKAGE    trust a package that a class_path names
  mlflow ui --backend-store-uri sqlite:///mlflow.db    compare runs
"""

# Each silenced with its reason; anything else a user sees is meant for them.
_QUIET = [
    # Lightning 2.6 still calls what jsonargparse 4 has deprecated; both floors in pyproject.toml allow for it.
    (".*add_instantiator.*", DeprecationWarning),
    (".*instantiate_classes.*", DeprecationWarning),
    (".*skip_none.*", DeprecationWarning),
    # The stream reads ahead with its own thread; DataLoader workers would only cost (see docs/architecture.md).
    (".*does not have many workers.*", UserWarning),
    # Lightning counts loader workers and sampler resets that do not exist here.
    (".*does not have a `?set_epoch.*", UserWarning),
    # Judging needs no checkpoint callback, and a resumed fit may save at other steps than the one before it.
    (".*callbacks used to create the checkpoint need to be provided.*", UserWarning),
    # A resumed fit goes on in the folder of its run.
    ("Checkpoint directory .* exists and is not empty", UserWarning),
    # Or in another one, where only a monitored best has to be found anew.
    ("The dirpath has changed from", UserWarning),
    # Lightning 2.6 asks torch for a name that torch 2.13 deprecates, in every transfer of a batch.
    (".*treespec, LeafSpec.*", FutureWarning),
]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command named first in ``args``.

    Args:
        args: Words of the command line without the program's name; ``sys.argv`` if None.

    Raises:
        SystemExit: With status 1 and one line on standard error where a setting, a file or the machine is at
            fault; with status 2 for an unknown command; with 130 after Ctrl-C; and with 0 where a scheduler asked a
            fit or a harvest to stop, which can go on from there.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if words[0] == "--version":
        print(f"atoms {__version__}")
        return
    if sys.platform == "win32":
        print("atoms: error: Windows is not supported; use Linux, macOS or WSL", file=sys.stderr)
        raise SystemExit(1)
    # Python 3.11's importer and MLflow's threads both dislike being forked later; nothing here forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for message, category in _QUIET:
        warnings.filterwarnings("ignore", message=message, category=category)
    try:
        from atoms.commands.imports import split_allowed, trust

        words, packages = split_allowed(words)
        trust(packages)
        if not words:
            raise AtomsError("no command: 'atoms --help' lists them")
        with interruption.caught():
            if words[0] == "validate":
                from atoms.commands.validate import run

                run(words[1:])
            elif words[0] == "information":
                from atoms.commands.information import run as run_information

                run_information(words[1:])
            elif words[0] == "conditioning":
                from atoms.commands.conditioning import run as run_conditioning

                run_conditioning(words[1:])
            elif words[0] == "tune":
                from atoms.commands.tune import run as run_tune

                run_tune(words[1:])
            elif words[0] == "store":
                from atoms.commands.store import run as run_store

                run_store(words[1:])
            elif words[0] == "sites":
                from atoms.commands.sites import run as run_sites

                run_sites(words[1:])
            elif words[0] in ("fit", "cache", "test", "predict"):
                from atoms.commands.fit import run as run_cli

                run_cli(words)
            else:
                print(f"atoms: error: unknown command {words[0]!r}; 'atoms --help' lists them", file=sys.stderr)
                raise SystemExit(2)
    except (AtomsError, OSError, MemoryError) as error:
        print(f"atoms: error: {_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except interruption.Interrupted as stop:
        raise SystemExit(_stopped(words[0], stop)) from None


def _stopped(command: str, stop: interruption.Interrupted) -> int:
    """Say how to go on, and give the status to exit with.

    Nought tells a scheduler that the work is in order as far as it got, and may be queued again.
    """
    resumable = command in ("fit", "cache")
    how = f"--ckpt_path={stop.checkpoint} (or --ckpt_path=last)" if stop.checkpoint else ""
    again = "run the same command again" + (f" with {how}" if how else ", whole blocks are kept" if resumable else "")
    print(f"atoms: interrupted by {stop.number.name}; to go on, {again}", file=sys.stderr)
    if stop.number == signal.SIGUSR1 and resumable and (line := interruption.requeue()):
        print(f"atoms: {line}", file=sys.stderr)
    return 0 if resumable and stop.number != signal.SIGINT else 128 + stop.number


def _line(error: Exception) -> str:
    """What the machine could not do is no fault of the program's, wherever it shows."""
    if isinstance(error, MemoryError):
        return f"there is too little memory ({printable(str(error)) or 'no more is said'}): make the settings smaller"
    if isinstance(error, OSError):
        names = " and ".join(str(name)[:200] for name in (error.filename, error.filename2) if name is not None)
        return printable(f"{names + ': ' if names else ''}{error.strerror or error}")
    return printable(str(error))
