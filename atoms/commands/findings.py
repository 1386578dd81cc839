"""What a command found, as files and as a run of MLflow."""

import io
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from atoms.activations.files import write_file
from atoms.errors import AtomsError, printable
from atoms.training.certificate_log import NOWHERE
from atoms.training.mlflow_logger import AtomsMLFlowLogger
from atoms.training.outbox import short

_OF_A_FIT = "trainer.logger.init_args.tracking_uri, or set trainer.logger to false"


def folder_name(title: str, otherwise: str) -> str:
    """A title as the name of a folder.

    Args:
        title: Any text.
        otherwise: The name where nothing of the title can be in one.
    """
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in title).split()).lower()[:80] or otherwise


def png(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Figures as files.

    Args:
        figures: By name.

    Returns:
        Content by name of file.
    """
    found: dict[str, bytes] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # names are whole on the screen
        for name, figure in figures.items():
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=120)
            found[f"{name}.png"] = picture.getvalue()
    return found


def write(folder: Path, content: Mapping[str, bytes], output: str) -> None:
    """Write files, each whole or not at all.

    Args:
        folder: Where to.
        content: By name of file.
        output: What the user set as ``output``.

    Raises:
        AtomsError: If nothing can be written there.
    """
    try:
        for name, each in content.items():
            write_file(folder / name, each)
    except OSError as error:
        raise AtomsError(
            f"output is {output}, where nothing can be written ({error.strerror}): name another folder"
        ) from error


def log_files(run: AtomsMLFlowLogger, content: Mapping[str, bytes]) -> None:
    """Add files to a run, pictures among its figures.

    Args:
        run: The run.
        content: Texts and pictures by name of file.
    """
    for name, each in content.items():
        if name.endswith(".png"):
            run.log_picture(each, name.removesuffix(".png"))
        else:
            run.log_text(each.decode(), name)


def log(
    settings: Any,
    run_name: str,
    tags: dict[str, str],
    params: dict[str, Any],
    numbers: Mapping[str, float],
    content: Mapping[str, bytes],
) -> None:
    """Keep it as a run, unless that is not wanted; what was found is on disk whatever happens here.

    Args:
        settings: The command's, of which ``tracking_uri`` and ``experiment`` are used.
        run_name: How the run is called.
        tags: The run's; ``command`` is the first part of its metrics' names.
        params: The run's.
        numbers: Metrics.
        content: Texts and pictures by name of file.
    """
    if settings.tracking_uri == NOWHERE:
        return
    try:
        run = AtomsMLFlowLogger(
            experiment_name=settings.experiment,
            run_name=run_name,
            tracking_uri=settings.tracking_uri,
            tags=tags,
            synchronous=True,
        )
        run.log_hyperparams(params)
        run.log_at({f"{tags['command']}/{name}": value for name, value in numbers.items()}, 0)
        log_files(run, content)
        run.finalize("success")
        print(f"logged      run {run.run_id} in {run.tracking_uri}")
    except AtomsError as error:
        say_unlogged(error)


def say_unlogged(error: Exception) -> None:
    """Note that nothing is kept in MLflow, and why; what a trainer's logger says goes by the command's settings.

    Args:
        error: What MLflow or the logger raised.
    """
    said = str(error) if isinstance(error, AtomsError) else short(error)
    said = said.replace("trainer.logger: ", "tracking_uri: ").replace(_OF_A_FIT, "--tracking_uri, or set it to none")
    print(f"note     not logged: {printable(said)}", file=sys.stderr)
