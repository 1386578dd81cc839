"""What atoms tell of rows and of labels, in bits, beside what random directions tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.information.label_told import CODES, RANDOM, ROW, SHUFFLED, STEPS, LabelTold, label_told
from atoms.checks.information.random_codes import RandomCodes
from atoms.checks.information.row_classes import MOST_ATOMS, ClassesTold, classes_told, row_classes
from atoms.checks.information.row_labels import LEAST, Purpose, Question, questions
from atoms.checks.row_sample import RowSample, sample_limit
from atoms.errors import AtomsError
from atoms.information.reconstruction import Verdict as Outcome

_SHOWN = 2048  # atoms in the tables of distances
_GREEDY = (1, STEPS)
_TOLD = (1, 5, 16, 64)  # atoms that tell classes
_SOURCE = "Delsol et al. 2024 (arXiv 2306.15540), perfect reconstruction"
_LABELS = ("token", "position", "document")
_VERDICTS = {
    Outcome.PERFECT: Verdict.GUARANTEED,
    Outcome.RULED_OUT: Verdict.REFUTED,
    Outcome.NOT_PERFECT: Verdict.REFUTED,
    Outcome.NOT_APPLICABLE: Verdict.NOT_APPLICABLE,
}


@dataclass(frozen=True, eq=False)
class Told:
    """What was found.

    Attributes:
        classes: Of classes of rows, by the unit and by random directions; None where there are too few rows.
        count: Number of classes.
        labels: Of each label that could be asked for.
        train_rows: Training rows in the sample.
        held_out_rows: Held-out rows in the sample.
        per_row: Mean number of atoms of a sampled row, of which random directions have as many.
    """

    classes: Mapping[str, ClassesTold] | None
    count: int
    labels: tuple[LabelTold, ...]
    train_rows: int
    held_out_rows: int
    per_row: float


class Information(Check):
    """Bits that signs and codes of atoms tell of rows and labels.

    Two questions, each where it may be asked. *Classes of rows* are discretised rows: which atoms fire on a class's
    representative is a function of the class, so the condition for perfect reconstruction applies. *Labels* (token,
    position, document group) are functions of nothing but the text, and no atom is a function of them: there a decoder
    fitted on other rows says how many bits codes tell, and how many the first few atoms.

    Random directions, as many and as sparse, stand beside everything, and so do shuffled labels and all of the row.

    Args:
        subject: What is judged.
    """

    name: ClassVar[str] = "information"
    title: ClassVar[str] = "Information: bits of rows and labels"
    splits: ClassVar[frozenset[str]] = frozenset({"val", "train"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.limit = sample_limit(subject, LEAST)
        self._samples = {split: RowSample(self.limit, subject.settings.seed) for split in self.splits}

    def update(self, batch: Encoded) -> None:
        """Keep a share of the rows and their codes."""
        self._samples[batch.split].add(batch.index, batch.rows, batch.codes)

    def compute(self) -> Told:
        """Look at classes and labels."""
        subject, settings = self.subject, self.subject.settings
        learnt, judged = (self._samples[split].gather() for split in ("train", "val"))
        if learnt is None or judged is None:
            raise AtomsError("there must be training rows to learn classes and labels from, and held-out rows to judge")
        per_row = judged.codes.nnz / len(judged.index)
        one_sided = not any((sample.codes.data < 0).any() for sample in (learnt, judged))
        drawn = RandomCodes(subject, per_row, one_sided)
        random = {id(sample): drawn.of(sample) for sample in (learnt, judged)}
        classes = row_classes(learnt, judged, settings.classes, settings.seed)
        told = None
        if classes is not None:
            told = {
                CODES: classes_told(classes, learnt.codes, judged.codes),
                RANDOM: classes_told(classes, random[id(learnt)], random[id(judged)]),
            }
        asked = [q for q in questions(subject.train, subject.held_out, learnt, judged, settings.seed) if q.sound]
        if told is None and not asked:
            raise AtomsError(
                f"{len(learnt.index):,} training and {len(judged.index):,} held-out rows make no two classes and no "
                "two labels with rows enough: judge more rows (checks.rows, checks.probe_rows)"
            )
        labels = tuple(self._told(question, random) for question in asked)
        count = 0 if classes is None else classes.count
        return Told(told, count, labels, len(learnt.index), len(judged.index), per_row)

    def _told(self, question: Question, random: Mapping[int, Any]) -> LabelTold:
        settings = self.subject.settings
        to_white = self.subject.geometry.map(unitless=True).cpu().float().numpy()
        mean, unit = self.subject.train.moments.mean.cpu().numpy(), self.subject.geometry.unit

        def white(part: Purpose) -> Any:
            return ((part.sample.rows[part.chosen] - mean) / unit).astype(np.float32) @ to_white

        return label_told(
            question,
            lambda part: part.sample.codes[part.chosen],
            lambda part: random[id(part.sample)][part.chosen],
            white,
            self.subject.held_out.groups()[question.score.sample.index[question.score.chosen]],
            resamples=settings.bootstrap,
            seed=settings.seed,
        )

    # ------------------------------------------------------------------------------------------ what is said

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section."""
        told: Told = found[self.name]
        numbers = {
            "train_rows": float(told.train_rows),
            "held_out_rows": float(told.held_out_rows),
            "classes": float(told.count),
        }
        numbers |= _class_numbers(told)
        for label in told.labels:
            numbers |= _label_numbers(label)
        return Section(
            name=self.name,
            title=self.title,
            numbers=numbers,
            claims=tuple(self._claims(told)),
            tables=self._tables(told),
            notes=tuple(self._notes(told)),
        )

    def _claims(self, told: Told) -> Iterator[Claim]:
        verdict, why, nulls, inputs = Verdict.NOT_APPLICABLE, "there are too few rows for classes", {}, {}
        gap: float | None = None
        if told.classes is not None:
            own, random = told.classes[CODES].found, told.classes[RANDOM].found
            why = "no atom tells any two classes apart"
            if own is not None:
                verdict, why, gap = _VERDICTS[own.verdict], own.why, own.gap
                inputs = {
                    "slack": own.slack,
                    "redundancy": own.redundancy,
                    "atoms": float(told.classes[CODES].searched),
                }
            if random is not None:
                nulls = {"random directions": random.gap}
        yield Claim(
            name="classes",
            statement=(
                f"Which of {told.count} classes a row is in follows from which atoms fire on the representative of its "
                "class."
            ),
            verdict=verdict,
            why=why,
            source=_SOURCE,
            computed_on=f"{told.held_out_rows:,} held-out rows, {told.count} representatives among training rows",
            value=gap,
            threshold=0.0,
            inputs=inputs,
            nulls=nulls,
        )
        for label in told.labels:
            if label.question.name == "token":
                yield self._token_claim(label)

    @staticmethod
    def _token_claim(label: LabelTold) -> Claim:
        atoms = label.atoms[CODES]
        moving = ~np.isnan(atoms.rajski)
        functions = int((atoms.function & moving).sum())
        told = f"codes tell {label.told.value:.3f} of {label.bits:.3f} bits"
        return Claim(
            name="token",
            statement="The token follows perfectly from atoms whose firing is a function of it.",
            verdict=Verdict.NOT_APPLICABLE if not functions else Verdict.NOT_GUARANTEED,
            why=(
                f"{functions:,} of {int(moving.sum()):,} atoms that fire are functions of the token on held-out rows, "
                f"so the condition on distances speaks of {'these alone' if functions else 'none'}; "
                f"{told}, random directions {label.told_random.value:.3f}"
            ),
            source=_SOURCE,
            computed_on=f"{len(label.question.score.labels):,} held-out rows",
            value=float(functions),
            inputs={"told": label.told.value, "bits": label.bits},
            nulls={"random directions": label.told_random.value, "shuffled labels": label.told_by(SHUFFLED)},
        )

    def _tables(self, told: Told) -> dict[str, dict[str, list[float] | list[str]]]:
        tables: dict[str, dict[str, list[Any]]] = {}
        if told.classes is not None:
            tables["classes"] = _class_table(told.classes)
        if told.labels:
            tables["greedy"] = _greedy_table(told.labels)
            tables["decoders"] = _decoder_table(told.labels)
        for label in told.labels:
            for arm in (CODES, RANDOM, SHUFFLED):
                if table := _atom_table(label, arm):
                    tables[f"{label.question.name} {arm}"] = table
        return tables

    def _notes(self, told: Told) -> Iterator[str]:
        asked = {label.question.name for label in told.labels}
        if missing := [name for name in _LABELS if name not in asked]:
            yield (
                f"Not asked for {', '.join(missing)}: the store does not know it of its rows, or no two classes have "
                f"{LEAST} rows to fit to and to score on."
            )
        if told.classes is None:
            yield "There are too few rows for classes of them."
        elif told.count < self.subject.settings.classes:
            yield f"There are {told.count} classes, as many as have rows enough and representatives of their own."
        if told.classes is not None and told.classes[CODES].searched == MOST_ATOMS:
            yield f"Classes are told by {MOST_ATOMS:,} atoms, those that divide the classes most evenly."
        if told.per_row > 0.9 * self.subject.num_atoms:
            yield "Nearly all atoms fire on every row: it is the sign of a code that is looked at."
        if self.limit < self.subject.settings.probe_rows:
            yield (
                f"Up to {self.limit:,} rows of each split were looked at, as many as memory_mib="
                f"{self.subject.settings.memory_mib} holds."
            )


def _class_numbers(told: Told) -> dict[str, float]:
    numbers: dict[str, float] = {}
    if told.classes is None:
        return numbers
    for arm, suffix in ((CODES, ""), (RANDOM, "_random")):
        of_arm = told.classes[arm]
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
        fired = np.nansum(of_arm.rows.entropy)
        numbers[f"class_of_firing{suffix}"] = float(of_arm.rows.information.sum() / fired) if fired else float("nan")
        numbers[f"class_functions{suffix}"] = float((of_arm.rows.function & ~np.isnan(of_arm.rows.rajski)).sum())
    return numbers


def _label_numbers(label: LabelTold) -> dict[str, float]:
    name, decoded = label.question.name, label.decoded[CODES]
    numbers = {
        f"{name}_classes": float(label.question.classes),
        f"{name}_rows": float(len(label.question.score.labels)),
        f"{name}_bits": label.bits,
        f"{name}_told": label.told.value,
        f"{name}_told_low": label.told.low,
        f"{name}_told_high": label.told.high,
        f"{name}_told_random": label.told_random.value,
        f"{name}_told_random_low": label.told_random.low,
        f"{name}_told_random_high": label.told_random.high,
        f"{name}_told_shuffled": label.told_by(SHUFFLED),
        f"{name}_told_row": label.told_by(ROW),
        f"{name}_left": decoded.bits,
        f"{name}_error": decoded.error,
        f"{name}_fano": decoded.fano,
        f"{name}_error_random": label.decoded[RANDOM].error,
    }
    for arm, suffix in ((CODES, ""), (RANDOM, "_random"), (SHUFFLED, "_shuffled")):
        numbers |= {f"{name}_told_{steps}{suffix}": label.told_greedily(arm, steps) for steps in _GREEDY}
        atoms = label.atoms[arm]
        known = atoms.rajski[~np.isnan(atoms.rajski)]
        numbers[f"{name}_rajski_min{suffix}"] = float(known.min()) if len(known) else float("nan")
        numbers[f"{name}_functions{suffix}"] = float((atoms.function & ~np.isnan(atoms.rajski)).sum())
    return numbers


def _columns(names: tuple[str, ...], lines: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [line[place] for line in lines] for place, name in enumerate(names)}


def _class_table(classes: Mapping[str, ClassesTold]) -> dict[str, list[Any]]:
    """Bits of the class told by the first k atoms."""
    lines = [
        (arm, float(place + 1), found.components[found.subsets.order[place]].name, bits)
        for arm in (CODES, RANDOM)
        if (found := classes[arm].found) is not None and found.subsets is not None
        for place, bits in enumerate(found.subsets.told)
    ]
    return _columns(("features", "k", "atom", "bits"), lines)


def _greedy_table(labels: tuple[LabelTold, ...]) -> dict[str, list[Any]]:
    lines = [
        (label.question.name, arm, float(place + 1), float(step.feature), step.gain, label.bits - step.left)
        for label in labels
        for arm in (CODES, RANDOM, SHUFFLED)
        for place, step in enumerate(label.greedy[arm])
    ]
    return _columns(("label", "features", "k", "atom", "gain", "told"), lines)


def _decoder_table(labels: tuple[LabelTold, ...]) -> dict[str, list[Any]]:
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
    atoms = label.atoms[arm]
    moving = np.flatnonzero(~np.isnan(atoms.rajski))
    count = min(_SHOWN, len(moving))
    shown = moving[np.arange(count) * len(moving) // max(count, 1)]
    if not len(shown):
        return {}
    return {
        "atom": shown.astype(float).tolist(),
        "rate": atoms.rate[shown].tolist(),
        "rajski": atoms.rajski[shown].tolist(),
        "information": atoms.information[shown].tolist(),
    }
