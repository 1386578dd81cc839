"""``atoms validate``: what may be claimed of a unit, on documents nobody learnt from."""

import copy
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.location import locate
from atoms.checks.certificate import Certificate
from atoms.checks.certify import certify
from atoms.checks.requirements import Requirement, unmet
from atoms.checks.screen import show
from atoms.checks.settings import CheckSettings
from atoms.commands.parser import AtomsArgumentParser, is_first_rank, quiet, readable
from atoms.errors import AtomsError
from atoms.precision import use_fast_float32
from atoms.processes import leave_at_exit
from atoms.training import checkpoint
from atoms.training.certificate_log import log_certificates, save_figures
from atoms.training.parallel import NAME as SHARDED
from atoms.training.trained_units import noise_twins, units_of
from atoms.units import PermutedUnits, TrainedUnit, Unit

UNMET = 3
"""Status the command exits with where a requirement is not met."""


Job = tuple[Unit, ActivationDataModule, CheckSettings]
"""What is judged, on which rows, and how."""


@dataclass
class Rows:
    """Which rows to judge on."""

    store: str | None = None
    """The store; the one the first checkpoint learnt from if left out."""
    site: str | None = None
    """The site, for units that explain any; the checkpoint's, or the only one there is, if left out."""
    max_norm: float | None = 10.0
    """Leave out rows whose norm exceeds this multiple of the site's median; null keeps all finite ones. A checkpoint
    brings its own."""


@dataclass
class Question:
    """All that ``atoms validate`` is asked, parsed and built."""

    ckpt_path: list[str]
    units: dict[str, Unit]
    seeds: list[str]
    data: Rows
    checks: CheckSettings
    trainer: dict[str, Any]
    require: list[Requirement]
    output: str
    tracking_uri: str | None
    experiment: str
    noise: bool
    plain: bool
    command: str = "validate"
    record: checkpoint.Record | None = None
    learnt: dict[str, TrainedUnit] = field(default_factory=dict)


def run(words: list[str]) -> None:
    """Run ``validate``.

    Args:
        words: The command's arguments.

    Raises:
        SystemExit: With `UNMET` where ``--require`` is not met. Verdicts alone never change the status.
    """
    parser = AtomsArgumentParser(prog="atoms validate", description="What may be claimed of a unit on held-out rows.")
    add_arguments(parser)
    parser.add_argument(
        "--require",
        type=str | list[str],
        default=[],
        help="What must hold, or the status is 3: a claim (joint.atoms), a claim's verdict "
        "(uniqueness.t3_median=guaranteed) or a bound on a number (rows.f>=0.5).",
    )
    with readable():
        settings = parser.parse_args(words)
        built = parser.instantiate_classes(settings)
    question = question_of(built, built.require)
    quiet()
    leave_at_exit()
    certificates = judge(question)
    if not is_first_rank():
        return
    missed = [line for certificate in certificates for line in unmet(certificate, question.require)]
    for line in missed:
        print(f"unmet       {line}")
    if missed:
        raise SystemExit(UNMET)


def add_arguments(parser: AtomsArgumentParser, output: str = "certificates") -> None:
    """Add the settings of what is judged, on which rows and how.

    Args:
        parser: Of a command that judges units.
        output: Where the command leaves files if nothing is said.
    """
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file with the settings below.")
    parser.add_argument(
        "--ckpt_path",
        type=str | list[str] | None,
        default=None,
        help="The checkpoint that `atoms fit` named, every member of which is judged; or several.",
    )
    parser.add_argument(
        "--unit", type=Unit | str | None, default=None, help="A saved dictionary's folder, or any unit by class_path."
    )
    parser.add_argument(
        "--units", type=dict[str, Unit | str], default={}, help="Several of them, by the names tables give them."
    )
    parser.add_argument(
        "--seeds",
        type=str | list[str],
        default=[],
        help="Checkpoints or saved dictionaries of other seeds, for stability across seeds. Members of a checkpoint "
        "that differ in nothing but their seed are compared with each other unasked.",
    )
    parser.add_argument("--data", type=Rows, default=Rows())
    parser.add_argument("--checks", type=CheckSettings, default=CheckSettings())
    parser.add_argument("--trainer.accelerator", type=str, default="auto", help="As Lightning's Trainer.")
    parser.add_argument("--trainer.devices", type=int | str | list[int], default="auto", help="As Lightning's Trainer.")
    parser.add_argument("--trainer.num_nodes", type=int, default=1, help="As Lightning's Trainer.")
    parser.add_argument("--trainer.strategy", type=str, default="auto", help="As Lightning's Trainer.")
    parser.add_argument("--output", type=str, default=output, help="Folder for what is found, and its figures.")
    parser.add_argument(
        "--tracking_uri",
        type=str | None,
        default=None,
        help="Where MLflow keeps the run; the checkpoint's own if left out. 'none' keeps none.",
    )
    parser.add_argument("--experiment", type=str, default="atoms", help="MLflow experiment, without a checkpoint.")
    parser.add_argument(
        "--noise",
        type=bool,
        default=False,
        help="Also train each checkpoint again on Gaussian rows of the same mean and covariance, as long as it was, "
        "and judge the twin on real rows and on noise. The noise goes into the output folder.",
    )
    parser.add_argument("--plain", type=bool, default=False, help="No colours and no boxes.")


def question_of(built: Any, require: str | list[str] | None = None) -> Question:
    """Settings as what they mean.

    Args:
        built: What a parser with `add_arguments` built.
        require: What must hold.

    Raises:
        AtomsError: If there is nothing to judge, or settings contradict each other.
    """
    paths = _listed(built.ckpt_path)
    named: dict[str, Unit | str] = dict(built.units)
    if built.unit is not None:
        named[Path(built.unit).name if isinstance(built.unit, str) else built.unit.name] = built.unit
    units = {name: TrainedUnit.load(unit) if isinstance(unit, str) else unit for name, unit in named.items()}
    if not units and not paths:
        raise AtomsError("nothing to judge: name a checkpoint with --ckpt_path, or a unit with --unit")
    for name, unit in units.items():
        unit.name = name
    strategy = built.trainer.strategy
    if strategy == SHARDED or strategy.startswith(("fsdp", "deepspeed")) or strategy == "ModelParallelStrategy":
        raise AtomsError(
            f"trainer.strategy is {strategy}: atoms are judged whole, each process taking its share of the rows; use "
            "ddp"
        )
    question = Question(
        ckpt_path=paths,
        units=units,
        seeds=_listed(built.seeds),
        data=built.data,
        checks=built.checks,
        trainer=built.trainer.as_dict(),
        require=[Requirement.parse(text) for text in _listed(require)],
        output=built.output,
        tracking_uri=built.tracking_uri,
        experiment=built.experiment,
        noise=built.noise,
        plain=built.plain,
    )
    for path in paths:
        learnt, record = units_of(path)
        question.record = question.record or record
        for name, unit in learnt.items():
            label = unit.name if unit.name not in question.learnt else f"{Path(path).parent.parent.name[:6]} {name}"
            unit.name = label
            question.learnt[label] = unit
    for name, unit in units.items():
        if isinstance(unit, PermutedUnits) and unit.unit is None and question.learnt:
            unit.permute(next(iter(question.learnt.values())))
            unit.name = name
    if twice := question.learnt.keys() & units.keys():
        raise AtomsError(f"units has {min(twice)}, which is also a member of the checkpoint: give it another name")
    return question


def _listed(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def judge(question: Question) -> list[Certificate]:
    """Judge every unit, print the screen, write certificates and figures, and log them.

    Args:
        question: What is asked.

    Raises:
        AtomsError: If rows or units cannot be used; of several units, after all others are judged.
    """
    data = _data(question)
    units: dict[str, Unit] = {**question.learnt, **question.units}
    site = question.data.site
    if site is None and question.learnt:
        sites = {unit.site for unit in question.learnt.values()}
        site = sites.pop() if len(sites) == 1 else None
    others = [unit for path in question.seeds for unit in _seeds(path)]
    use_fast_float32()
    jobs: list[Job] = [(unit, data, _checks(question, unit)) for unit in units.values()]
    jobs += _noise_jobs(question, data)
    certificates, left_out = [], []
    for unit, rows, checks in jobs:
        rivals = [other for other in others if other.site == unit.site] + _siblings(unit, question.learnt)
        try:
            found = certify(
                unit,
                rows,
                site=None if unit.site else site,
                settings=checks,
                others=rivals,
                trainer=question.trainer,
            )
        except AtomsError as error:  # one that cannot be judged must not cost what the others took minutes for
            if len(jobs) == 1:
                raise
            left_out.append(f"{unit.name}: {error}")
            continue
        certificates.append(found)
        if is_first_rank():
            found.save(Path(question.output) / unit.name.replace("/", "-"))
    if is_first_rank() and certificates:
        pictures = save_figures(certificates, Path(question.output))
        show(certificates, plain=question.plain)
        print(f"certificate {question.output}/")
        log_certificates(
            certificates,
            pictures,
            question.record,
            question.ckpt_path,
            question.tracking_uri,
            question.experiment,
            question.command,
        )
    if left_out:
        raise AtomsError(f"not judged: {'; '.join(left_out)}")
    return certificates


def _checks(question: Question, unit: Unit) -> CheckSettings:
    """How to judge a unit: beside a checkpoint, everything else is asked for as few atoms as it is."""
    if question.checks.max_k is not None or not question.learnt or unit.name in question.learnt:
        return question.checks
    target = next(iter(question.learnt.values())).target_l0
    return replace(question.checks, max_k=None if target is None else round(2 * target))


def _noise_jobs(question: Question, data: ActivationDataModule) -> list[Job]:
    """The checkpoints' twins that learnt from noise, on real rows and on noise."""
    jobs: list[Job] = []
    if not question.noise:
        return jobs
    if not question.ckpt_path:
        raise AtomsError("noise is true, but there is no checkpoint whose training could be repeated: give --ckpt_path")
    for number, path in enumerate(question.ckpt_path):
        folder = Path(question.output) / f"noise-{number}.zarr"
        twins, noise = noise_twins(path, data, folder, question.trainer)
        for unit in twins.values():
            on_noise = copy.copy(unit)
            unit.name, on_noise.name = f"{unit.name} from noise", f"{unit.name} on noise"
            jobs += [(unit, data, question.checks), (on_noise, noise, question.checks)]
    return jobs


def _data(question: Question) -> ActivationDataModule:
    path = question.data.store or (question.record.store if question.record else None)
    if path is None:
        raise AtomsError("data.store is not set: name the store whose rows the unit is to explain")
    if not locate(path).exists():
        raise AtomsError(f"data.store is {path}, which does not exist: name the store with --data.store")
    settings = question.record.data if question.record else {"max_norm": question.data.max_norm}
    data = ActivationDataModule(store=path, **settings)
    if question.record and data.store.identity_hash != question.record.identity and is_first_rank():
        print(f"note     {path} is not the store this checkpoint learnt from", file=sys.stderr)
    return data


def _seeds(path: str) -> list[Unit]:
    if Path(path).is_dir():
        return [TrainedUnit.load(path)]
    return list(units_of(path)[0].values())


def _siblings(unit: Unit, learnt: dict[str, TrainedUnit]) -> list[Unit]:
    """Members that are the same unit but for the seed."""
    if not isinstance(unit, TrainedUnit):
        return []
    return [other for other in learnt.values() if other is not unit and unit.same_but_for_seed(other)]
