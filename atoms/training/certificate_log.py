"""Certificates as MLflow runs: numbers, files and figures, beside the run that learnt the unit."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from atoms.checks.certificate import FILE, Certificate
from atoms.checks.comparison import COMPARISONS, compare
from atoms.checks.figures.draw import FIGURES, draw
from atoms.errors import AtomsError, printable
from atoms.training import checkpoint
from atoms.training.mlflow_logger import AtomsMLFlowLogger, child_run
from atoms.training.outbox import short

NOWHERE = "none"
TOGETHER = ""
"""Whose pictures the comparison of several certificates is."""
Pictures = dict[str, dict[str, bytes]]
"""PNGs by name, of each unit by its name and of `TOGETHER`."""


def log_certificates(
    certificates: Sequence[Certificate],
    pictures: Pictures,
    record: checkpoint.Record | None,
    paths: Sequence[str],
    tracking_uri: str | None,
    experiment: str,
    command: str = "validate",
) -> None:
    """Log certificates.

    The certificate of a checkpoint's only member is a child of the run that learnt it, and its numbers are copied to
    that run. Several certificates share a parent run of their own, a child each, itself a child of the learning run
    where there is one.

    Args:
        certificates: What was judged together.
        pictures: What `save_figures` wrote of them.
        record: Record of the checkpoint among them, or None.
        paths: The checkpoints.
        tracking_uri: Where to; None for where the checkpoint's run is kept, else the default; ``none`` for nowhere.
        experiment: Name of the experiment where there is no run to be a child of.
        command: The command that judged.
    """
    if tracking_uri == NOWHERE:
        return
    parent = record.run_id if record else None
    uri = tracking_uri or (record.tracking_uri if record else None)
    if record is not None and (parent is None or (uri or "") != record.tracking_uri):
        if tracking_uri is None:
            return  # it was learnt without a run, so it is judged without one
        parent = None
    tags = {"command": command} | ({"checkpoint": checkpoint.digest(paths[0])} if paths else {})
    try:
        if len(certificates) == 1:
            run = _run(uri, parent, command, tags, experiment)
            _log(run, certificates[0], pictures, record)
        else:
            run = _run(uri, parent, "controls", tags, experiment)
            for certificate in certificates:
                child = child_run(run.tracking_uri, str(run.run_id), certificate.unit.name, tags)
                _log(child, certificate, pictures, record)
                child.finalize("success")
            lines = {f"check/{each.unit.name}/{key}": value for each in certificates for key, value in _few(each)}
            run.log_at(lines, record.rows if record else 0)
            for name, content in pictures[TOGETHER].items():
                run.log_picture(content, name)
        run.finalize("success")
        if parent is not None and len(certificates) == 1:
            learnt = AtomsMLFlowLogger(tracking_uri=run.tracking_uri, run_id=parent, synchronous=True)
            learnt.log_at(_metrics(certificates[0]), record.rows if record else 0)
        print(f"logged      run {run.run_id} in {run.tracking_uri}")
    except Exception as error:  # judging is done and saved; a run that cannot be found must not take it away
        print(f"note     not logged: {printable(short(error))}", file=sys.stderr)


def _run(uri: str | None, parent: str | None, name: str, tags: dict[str, str], experiment: str) -> AtomsMLFlowLogger:
    if parent is not None and uri is not None:
        return child_run(uri, parent, name, tags)
    run = AtomsMLFlowLogger(experiment_name=experiment, run_name=name, tracking_uri=uri, tags=tags, synchronous=True)
    _ = run.experiment
    return run


def _log(
    run: AtomsMLFlowLogger, certificate: Certificate, pictures: Pictures, record: checkpoint.Record | None
) -> None:
    run.log_at(_metrics(certificate), record.rows if record else 0)
    run.log_text(certificate.to_json(), FILE)
    for name, content in pictures[certificate.unit.name].items():
        run.log_picture(content, name)


def _metrics(certificate: Certificate) -> dict[str, float]:
    return {f"check/{key}": value for key, value in certificate.numbers().items()}


def _few(certificate: Certificate) -> list[tuple[str, float]]:
    """What a comparison is drawn from."""
    return [(key, value) for key, value in certificate.numbers().items() if key.startswith("joint/")]


def save_figures(certificates: Sequence[Certificate], output: Path) -> Pictures:
    """Write the figures of each certificate beside it as ``NAME.png``, and the comparison of several above them.

    Figures of an earlier judgement that are not drawn this time are removed: they would be taken for this one's.

    Args:
        certificates: What was judged together, each saved in the folder of its unit's name.
        output: The folder of these.

    Returns:
        What was written.

    Raises:
        AtomsError: If a folder cannot be written.
    """
    pictures = {certificate.unit.name: _png(draw(certificate)) for certificate in certificates}
    if len(certificates) > 1:
        pictures[TOGETHER] = _png(compare(certificates))
    for name, own in pictures.items():
        folder = output / name.replace("/", "-")
        try:
            for stale in (COMPARISONS if name == TOGETHER else FIGURES.keys()) - own.keys():
                (folder / f"{stale}.png").unlink(missing_ok=True)
            for figure, content in own.items():
                (folder / f"{figure}.png").write_bytes(content)
        except OSError as error:
            raise AtomsError(
                f"output is {output}, where figures cannot be written ({error.strerror}): name another folder"
            ) from error
    return pictures


def _png(figures: dict[str, Figure]) -> dict[str, bytes]:
    content = {}
    for name, figure in figures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
        content[name] = image.getvalue()
    return content
