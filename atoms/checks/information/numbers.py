"""Numbers and tables of the information section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atoms.checks.information.label_told import CODES, COORDINATES, RANDOM, ROWS, SHUFFLED, STEPS, WHOLE, LabelTold
from atoms.checks.information.row_classes import ClassesTold
from atoms.information.signs import SignInformation

_SHOWN = 2048  # atoms in the tables of distances
_GREEDY = (1, STEPS)
_TOLD = (1, 5, 16, 64)  # atoms that tell classes


def class_numbers(classes: Mapping[str, ClassesTold]) -> dict[str, float]:
    """Scalars on classes of rows, by the names of docs/checks/information.md.

    Args:
        classes: What `CODES`, `RANDOM` and `SHUFFLED` tell of them.
    """
    numbers: dict[str, float] = {}
    for arm, suffix in ((CODES, ""), (RANDOM, "_random"), (SHUFFLED, "_shuffled")):
        of_arm = classes[arm]
        fired = float(np.nansum(of_arm.rows.entropy))
        numbers[f"class_of_firing{suffix}"] = float(of_arm.rows.information.sum() / fired) if fired else float("nan")
        numbers[f"class_functions{suffix}"] = _functions(of_arm.rows)
        if (found := of_arm.found) is None:
            continue
        distances = [part.rajski for part in found.components]
        numbers |= {
            f"class_bits{suffix}": found.entropy,
            f"class_gap{suffix}": found.gap,
            f"class_slack{suffix}": found.slack,
            f"class_redundancy{suffix}": found.redundancy,
            f"class_rajski{suffix}": float(np.mean(distances)),
            f"class_rajski_min{suffix}": min(distances),
        }
        subsets = found.subsets
        if subsets is not None and subsets.told:
            numbers[f"class_atoms{suffix}"] = float(len(subsets.greedy)) if subsets.greedy else float("nan")
            for k in _TOLD:
                numbers[f"class_told_{k}{suffix}"] = subsets.told[min(k, len(subsets.told)) - 1]
    return numbers


def label_numbers(label: LabelTold) -> dict[str, float]:
    """Scalars on a label, by the names of docs/checks/information.md.

    Args:
        label: What was told of it.
    """
    name, decoded = label.question.name, label.decoded[CODES]
    numbers = {
        f"{name}_classes": float(label.question.classes),
        f"{name}_rows": float(len(label.question.score.labels)),
        f"{name}_bits": label.bits,
        f"{name}_told_rows": label.told_by(ROWS),
        f"{name}_told_shuffled": label.told_by(SHUFFLED),
        f"{name}_told_whole": label.told_by(WHOLE),
        f"{name}_left": decoded.bits,
        f"{name}_error": decoded.error,
        f"{name}_fano": decoded.fano,
        f"{name}_error_random": label.decoded[RANDOM].error,
    }
    for arm, suffix in ((CODES, ""), (RANDOM, "_random")):
        numbers[f"{name}_told{suffix}"] = label.told[arm].value
        numbers[f"{name}_told{suffix}_low"] = label.told[arm].low
        numbers[f"{name}_told{suffix}_high"] = label.told[arm].high
    for arm in (CODES, RANDOM, ROWS, COORDINATES, SHUFFLED):
        suffix, own = "" if arm == CODES else f"_{arm}", label.signs[arm]
        numbers |= {f"{name}_told_{steps}{suffix}": label.told_greedily(arm, steps) for steps in _GREEDY}
        known = own.rajski[~np.isnan(own.rajski)]
        numbers[f"{name}_rajski_min{suffix}"] = float(known.min()) if len(known) else float("nan")
        numbers[f"{name}_functions{suffix}"] = _functions(own)
    return numbers


def _functions(signs: SignInformation) -> float:
    """Number of features that change and are functions of the label."""
    return float((signs.function & ~np.isnan(signs.rajski)).sum())


def tables(
    classes: Mapping[str, ClassesTold] | None, labels: Sequence[LabelTold]
) -> dict[str, dict[str, list[float] | list[str]]]:
    """Tables of the section; none without lines.

    Args:
        classes: What is told of classes of rows, if there are any.
        labels: What is told of labels.
    """
    found: dict[str, dict[str, list[Any]]] = {} if classes is None else {"classes": _class_table(classes)}
    found |= {"greedy": _greedy_table(labels), "decoders": _decoder_table(labels)}
    for label in labels:
        for arm in (CODES, RANDOM, SHUFFLED):
            found[f"{label.question.name} {arm}"] = _atom_table(label, arm)
    return {name: table for name, table in found.items() if all(table.values())}


def _columns(names: tuple[str, ...], lines: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [line[place] for line in lines] for place, name in enumerate(names)}


def _class_table(classes: Mapping[str, ClassesTold]) -> dict[str, list[Any]]:
    """Bits of the class told by the first k atoms."""
    lines = [
        (arm, float(place + 1), found.components[found.subsets.order[place]].name, bits)
        for arm in (CODES, RANDOM, SHUFFLED)
        if (found := classes[arm].found) is not None and found.subsets is not None
        for place, bits in enumerate(found.subsets.told)
    ]
    return _columns(("features", "k", "atom", "bits"), lines)


def _greedy_table(labels: Sequence[LabelTold]) -> dict[str, list[Any]]:
    lines = [
        (label.question.name, arm, float(place + 1), float(step.feature), step.gain, label.bits - step.left)
        for label in labels
        for arm in (CODES, RANDOM, ROWS, COORDINATES, SHUFFLED)
        for place, step in enumerate(label.greedy[arm])
    ]
    return _columns(("label", "features", "k", "atom", "gain", "told"), lines)


def _decoder_table(labels: Sequence[LabelTold]) -> dict[str, list[Any]]:
    lines = [
        (
            label.question.name,
            arm,
            label.bits,
            each.bits,
            label.bits - each.bits,
            each.error,
            each.fano,
            each.strength,
            each.blind,
        )
        for label in labels
        for arm, each in label.decoded.items()
    ]
    return _columns(("label", "features", "bits", "left", "told", "error", "fano", "strength", "blind"), lines)


def _atom_table(label: LabelTold, arm: str) -> dict[str, list[Any]]:
    """Firing rate and distance to the label of the atoms that fire, or of so many of them, evenly spread."""
    atoms = label.signs[arm]
    moving = np.flatnonzero(~np.isnan(atoms.rajski))
    count = min(_SHOWN, len(moving))
    shown = moving[np.arange(count) * len(moving) // max(count, 1)]
    return {
        "atom": shown.astype(float).tolist(),
        "rate": atoms.rate[shown].tolist(),
        "rajski": atoms.rajski[shown].tolist(),
        "information": atoms.information[shown].tolist(),
    }
