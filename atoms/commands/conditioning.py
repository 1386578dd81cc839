"""``atoms conditioning``: condition numbers of a model's weights, what else spectra say, and its sites by them."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from atoms import __version__
from atoms.activations.model_source import ModelSpec, folder_files, names_folder, resolve, weight_files
from atoms.commands.findings import folder_name, log, png, write
from atoms.commands.parser import AtomsArgumentParser, quiet, readable
from atoms.conditioning.checkpoint import weights_in
from atoms.conditioning.figures import FIGURES, draw
from atoms.conditioning.record import numbers, screen, to_csv, to_json
from atoms.conditioning.selection import admits
from atoms.conditioning.site_weights import SiteCondition, rank_sites, site_writers
from atoms.conditioning.survey import MAX_DIM, SNR, Condition, cost, small, survey
from atoms.conditioning.timing import survey_seconds, working_memory
from atoms.conditioning.weights import Weight
from atoms.errors import AtomsError, printable
from atoms.memory import require_memory
from atoms.progress import Meter, duration, size

FILE = "conditioning"
Sort = Literal["kappa", "relative", "effective_rank", "entropy_loss", "channel_share", "parameters", "name"]
_BYTES = {"F64": 8, "F32": 4}


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
        name: As the user gave it.
        title: A short name.
        files: The safetensors files.
        family: What ``config.json`` calls the kind of model; empty where there is none.
        spec: Of the model, where there is a configuration.
        identity: Digest of the model's files, or its hub commit's.
        revision: Commit of a hub repository.
    """

    name: str
    title: str
    files: Sequence[Path]
    family: str = ""
    spec: ModelSpec | None = None
    identity: str | None = None
    revision: str | None = None


def run(words: list[str]) -> None:
    """Run ``conditioning``.

    Args:
        words: The command's arguments.
    """
    parser = AtomsArgumentParser(
        prog="atoms conditioning",
        description="Condition numbers of the weight matrices of a model or of files, beside those of Gaussian "
        "matrices of the same shapes, and what else the singular values say. One tensor is in memory at a time.",
    )
    parser.add_argument("--model", type=str | None, default=None, help="Hub id, local folder, or package:NAME/FOLDER.")
    parser.add_argument("--revision", type=str | None, default=None, help="Branch, tag or commit of a hub repository.")
    parser.add_argument(
        "--file", type=str, nargs="+", default=[], help="Or .safetensors files of one checkpoint, or a folder of them."
    )
    parser.add_argument(
        "--max_dim",
        type=int,
        default=MAX_DIM,
        help="Largest smaller dimension of a matrix that is decomposed; beyond it κ is a lower bound.",
    )
    parser.add_argument(
        "--snr", type=float, default=SNR, help="Power of the signal over that of the noise behind the channel share."
    )
    parser.add_argument("--include", type=str, nargs="+", default=[], help="Patterns of names, such as '*.mlp.*'.")
    parser.add_argument("--exclude", type=str, nargs="+", default=[], help="Patterns of names that are left out.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N.")
    parser.add_argument("--sort", type=Sort, default="kappa", help="By what the table is sorted, the largest first.")
    parser.add_argument("--ascending", action="store_true", help="The smallest first.")
    parser.add_argument("--top", type=int, default=30, help="Lines of the tables; 0 for all. The files hold all.")
    parser.add_argument("--output", type=str, default=FILE, help="Folder for what is found, and its figures.")
    parser.add_argument(
        "--tracking_uri", type=str | None, default=None, help="Where MLflow keeps the run. 'none' keeps none."
    )
    parser.add_argument("--experiment", type=str, default="atoms", help="MLflow experiment.")
    with readable():
        settings = parser.parse_args(words)
    quiet()
    try:
        conditioning(settings)
    except AtomsError as error:
        raise AtomsError(str(error).replace("data.harvest.model.name", "model")) from error


def conditioning(settings: Any) -> list[Condition]:
    """Measure weights, print what is found, and leave files and a run.

    Args:
        settings: The command's.

    Raises:
        AtomsError: If there is nothing to measure, something cannot be measured, or files cannot be written.
    """
    _require(settings)
    device = _device(settings.device)
    source = _files(settings.file) if settings.file else _model(settings.model, settings.revision)
    folder = Path(settings.output) / folder_name(source.title, "weights")
    _require_writable(folder, settings.output)
    weights = _chosen(weights_in(source.files, source.family), settings.include, settings.exclude)
    _say_cost(source, weights, settings.max_dim, device)
    writers, why = _writers(source)  # before hours of work, since it runs code of any model
    conditions = _measured(weights, settings.max_dim, settings.snr, device)
    sites, notes = _sites(writers, conditions) if why is None else ([], [why])
    content = _texts(source, conditions, sites, notes, settings, device)
    write(folder, content, settings.output)
    print(screen(conditions, sites, settings.sort, settings.ascending, settings.top))
    for note in notes:
        print(f"note        {note}")
    pictures = png(draw(conditions))
    write(folder, pictures, settings.output)
    _sweep(folder, pictures)
    print(f"found       {folder}/")
    log(
        settings,
        source.title,
        {"command": "conditioning", "source": source.name, "identity": source.identity or ""},
        {"model": source.name, "max_dim": settings.max_dim, "snr": settings.snr, "matrices": len(conditions)},
        numbers(conditions),
        content | pictures,
    )
    return conditions


def _require(settings: Any) -> None:
    """Refuse settings that say nothing, or too much."""
    if (settings.model is None) == (not settings.file):
        said = "neither --model nor --file is set" if settings.model is None else "--model and --file are set"
        raise AtomsError(f"{said}: name a model or the files of one, with one of them")
    if settings.file and settings.revision is not None:
        raise AtomsError(f"revision is {settings.revision} beside --file: it belongs to --model, leave it out")
    if settings.revision is not None and names_folder(settings.model):
        raise AtomsError(
            f"revision is {settings.revision} beside a folder, {settings.model}, which has none: leave it out"
        )
    for name, least in (("max_dim", 1), ("top", 0)):
        if getattr(settings, name) < least:
            raise AtomsError(f"{name} is {getattr(settings, name)}: give at least {least}")
    if not 0 < settings.snr < float("inf"):
        raise AtomsError(f"snr is {settings.snr}: give a number above 0")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise AtomsError(f"device is {name}: give auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise AtomsError(f"device is {name}, and torch sees {torch.cuda.device_count()} such GPUs: give cpu or auto")
    return device


def _model(name: str, revision: str | None) -> Source:
    spec = ModelSpec(name, revision)
    found = resolve(spec)
    title = Path(found.path).resolve().name if Path(name).expanduser().is_dir() else name
    family = str(found.config.model_type)
    return Source(name, title, weight_files(found), family, spec, found.identity, found.revision)


def _files(names: Sequence[str]) -> Source:
    """Files by their names, folders by what they hold; what lies beside them tells the kind of model."""
    files: list[Path] = []
    for path in map(Path, names):
        inside = folder_files(path) if path.is_dir() else [path]
        if not inside:
            raise AtomsError(f"file is {path}, a folder without *.safetensors: name one with weights")
        files += inside
    beside = files[0].parent.resolve()  # not of the file itself: in the hub's cache that is a link to a bare blob
    title = files[0].stem if len(files) == 1 and not Path(names[0]).is_dir() else beside.name
    config = beside / "config.json"
    if not config.is_file():
        return Source(" ".join(names), title, files)
    try:
        family = str(json.loads(config.read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return Source(" ".join(names), title, files)
    return Source(" ".join(names), title, files, family, ModelSpec(str(beside)))


def _chosen(weights: Sequence[Weight], include: Sequence[str], exclude: Sequence[str]) -> list[Weight]:
    """Tensors whose names fit, those outside of blocks first, then block after block."""
    found = [weight for weight in weights if admits(weight.name, include, exclude)]
    if not found:
        raise AtomsError(
            f"include={list(include)} and exclude={list(exclude)} leave none of {len(weights)} tensors "
            f"({weights[0].name}, …): change the patterns"
        )
    return sorted(found, key=lambda weight: -1 if weight.layer is None else weight.layer)


def _say_cost(source: Source, weights: Sequence[Weight], max_dim: int, device: torch.device) -> None:
    """What is to be read and computed, and whether it fits."""
    stored = _stored(source.files)
    needed = {weight.name: working_memory(weight, stored[weight.name], max_dim) for weight in weights}
    name, most = max(needed.items(), key=lambda item: item[1])
    fix = "lower max_dim, or leave it out with --exclude"
    require_memory(most, name, fix)
    if device.type == "cuda" and most > (free := torch.cuda.mem_get_info(device)[0]):
        raise AtomsError(f"{name} takes {size(most)} and {device} has {size(free)} free: {fix}, or set --device cpu")
    matrices, values = sum(weight.count for weight in weights), sum(weight.numel for weight in weights)
    read = sum(stored[weight.name] for weight in weights)
    seconds = duration(survey_seconds(weights, read, max_dim, device))
    threads = f", {_threads(weights)}" if device.type == "cpu" else ""
    operations = sum(cost(weights, max_dim)) / 1e9
    family = f" ({printable(source.family)})" if source.family else ""
    print(f"{source.name}{family}: {matrices:,} matrices of {values:,} weights, {size(read)}")
    print(
        f"cost        {operations:,.0f} GFLOP, about {seconds} on {device}{threads}; up to {size(most)} of memory for "
        f"{printable(name)}\n",
        flush=True,
    )


def _threads(weights: Sequence[Weight]) -> str:
    """On how many threads it is computed."""
    number = torch.get_num_threads()
    one = number == 1 or all(small(*weight.matrix_shape) for weight in weights)
    return "on one thread" if one else f"on up to {number} threads"


def _stored(files: Sequence[Path]) -> dict[str, int]:
    """Bytes of every tensor, from the files' headers."""
    found: dict[str, int] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118  # no mapping, only its keys
                part = opened.get_slice(key)
                found[key] = torch.Size(part.get_shape()).numel() * _BYTES.get(part.get_dtype(), 2)
    return found


def _measured(weights: Sequence[Weight], max_dim: int, snr: float, device: torch.device) -> list[Condition]:
    """The survey, with a bar; its time left goes by operations."""
    operations = dict(zip((weight.name for weight in weights), cost(weights, max_dim), strict=True))
    total = sum(operations.values())
    done = 0.0
    with Meter("weights", max(1, int(total / 1e9)), "GFLOP") as meter:

        def advance(weight: Weight) -> None:
            nonlocal done
            done += operations[weight.name]
            meter.advance(int(done / 1e9) - meter.done)

        try:
            return survey(weights, max_dim, snr, device, advance)
        except AtomsError as error:
            raise AtomsError(f"{error}; --exclude leaves a tensor out") from error
        except torch.OutOfMemoryError as error:
            raise AtomsError(f"{device} has too little memory free: lower max_dim, or set --device cpu") from error


def _writers(source: Source) -> tuple[dict[str, tuple[str, ...]], str | None]:
    """The matrices that write every site, or why that is not known."""
    if source.spec is None:
        return {}, "no ranking of sites: no readable config.json beside the files says what model they are of"
    try:
        return site_writers(source.spec), None
    except AtomsError as error:
        return {}, f"no ranking of sites: {printable(str(error)).replace('data.harvest.model.name', 'model')}"


def _sites(
    writers: Mapping[str, Sequence[str]], conditions: Sequence[Condition]
) -> tuple[list[SiteCondition], list[str]]:
    """The sites in their order, and what kept some from having one."""
    ranked, missing = rank_sites(writers, conditions)
    if not missing:
        return ranked, []
    few = ", ".join(list(missing)[:3]) + (", …" if len(missing) > 3 else "")
    why = f"{next(iter(missing.values()))} is not among the matrices measured"
    return ranked, [f"sites without a rank: {len(missing)} ({few}); {why}"]


def _texts(
    source: Source,
    conditions: Sequence[Condition],
    sites: Sequence[SiteCondition],
    notes: Sequence[str],
    settings: Any,
    device: torch.device,
) -> dict[str, bytes]:
    """Files by name."""
    about = {
        "atoms": __version__,
        "source": {
            "name": source.name,
            "family": source.family or None,
            "identity": source.identity,
            "revision": source.revision,
            "files": [{"name": file.name, "bytes": file.stat().st_size} for file in source.files],
        },
        "settings": {
            **{name: getattr(settings, name) for name in ("max_dim", "snr", "include", "exclude")},
            "device": str(device),
        },
    }
    return {
        f"{FILE}.json": to_json(conditions, sites, about, notes).encode(),
        f"{FILE}.csv": to_csv(conditions).encode(),
    }


def _require_writable(folder: Path, output: str) -> None:
    """Now rather than after hours."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise AtomsError(f"output is {output}, where nothing can be written: name another folder")


def _sweep(folder: Path, pictures: dict[str, bytes]) -> None:
    """Remove an earlier survey's pictures that are not drawn now: they would be taken for this one's."""
    for name in FIGURES:
        if f"{name}.png" not in pictures:
            (folder / f"{name}.png").unlink(missing_ok=True)
