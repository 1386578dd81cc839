"""What atoms tell of rows and of labels, in bits, beside what random directions tell."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.information.label_told import (
    CODES,
    COORDINATES,
    RANDOM,
    ROWS,
    SHUFFLED,
    WHOLE,
    Features,
    LabelTold,
    label_told,
)
from atoms.checks.information.numbers import class_numbers, label_numbers, tables
from atoms.checks.information.projection_codes import ProjectionCodes, Whitening, random_directions, row_directions
from atoms.checks.information.row_classes import MOST_ATOMS, ClassesTold, RowClasses, classes_told, row_classes
from atoms.checks.information.row_labels import LEAST, Question, questions
from atoms.checks.row_sample import RowSample, Sampled, sample_limit
from atoms.errors import AtomsError
from atoms.information.estimation import FewSamplesWarning
from atoms.information.gain import Signs
from atoms.information.reconstruction import Verdict as Outcome
from atoms.information.reconstruction import perfect_reconstruction
from atoms.information.variable import SampleSpace

_COORDINATES = 1024  # coordinates of the row at most, those of largest variance
_FUNCTIONS = 64  # atoms at most that a label is rebuilt from
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
        classes: Of classes of rows, by the unit, by random directions, and by the unit's signs dealt to other classes;
            None where there are too few rows.
        count: Number of classes.
        labels: Of each label that could be asked for.
        token: Verdict and reason on the token as a function of atoms that are functions of it; None if not asked.
        left_out: Why a label was not asked for, by its name.
        train_rows: Training rows in the sample.
        held_out_rows: Held-out rows in the sample.
        per_row: Mean number of atoms of a sampled row, of which random directions have as many.
    """

    classes: Mapping[str, ClassesTold] | None
    count: int
    labels: tuple[LabelTold, ...]
    token: tuple[Verdict, str, int] | None
    left_out: Mapping[str, str]
    train_rows: int
    held_out_rows: int
    per_row: float


class Information(Check):
    """Bits that signs and codes of atoms tell of rows and labels.

    Two questions, each where it may be asked. *Classes of rows* are discretised rows: which atoms fire on a class's
    representative is a function of the class, so the condition for perfect reconstruction applies. *Labels* (token,
    position, document group) are functions of nothing but the text, and no atom is a function of them: there a decoder
    fitted on other rows says how many bits codes tell, and how many the first few atoms.

    Beside it stand random directions and training rows as directions, as many and as sparse as the unit, coordinates of
    the row, all of the row, and shuffled labels.

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
        white = Whitening(subject)
        directions = {
            RANDOM: random_directions(subject.num_atoms, subject.width, settings.seed),
            ROWS: row_directions(learnt, white, subject.num_atoms),
        }
        codes: dict[str, dict[int, Any]] = {CODES: {id(sample): sample.codes for sample in (learnt, judged)}}
        for name, drawn in directions.items():
            code = ProjectionCodes(white, drawn, per_row, one_sided)
            codes[name] = {id(sample): code.of(sample) for sample in (learnt, judged)}
        classes = row_classes(learnt, judged, settings.classes, settings.seed)
        told = None if classes is None else self._classes(classes, codes, learnt, judged)
        asked = list(questions(subject.train, subject.held_out, learnt, judged, settings.seed))
        left_out = dict.fromkeys(_LABELS, "the store does not say it of every row") | {
            question.name: f"no two classes have {LEAST} rows to fit to and to score on" for question in asked
        }
        asked = [question for question in asked if question.sound]
        for question in asked:
            del left_out[question.name]
        if told is None and not asked:
            raise AtomsError(
                f"{len(learnt.index):,} training and {len(judged.index):,} held-out rows make no two classes and no "
                "two labels with rows enough: judge more rows (checks.rows, checks.probe_rows)"
            )
        features = self._features(codes, white, learnt)
        labels = tuple(self._told(question, features) for question in asked)
        return Told(
            classes=told,
            count=0 if classes is None else classes.count,
            labels=labels,
            token=next((self._token(label, judged) for label in labels if label.question.name == "token"), None),
            left_out=left_out,
            train_rows=len(learnt.index),
            held_out_rows=len(judged.index),
            per_row=per_row,
        )

    def _classes(
        self, classes: RowClasses, codes: Mapping[str, Mapping[int, Any]], learnt: Sampled, judged: Sampled
    ) -> dict[str, ClassesTold]:
        """What the unit, random directions and the unit's signs dealt to other classes tell of classes."""
        signs = {
            name: np.sign(codes[name][id(learnt)][classes.representatives].toarray()).astype(np.int8)
            for name in (CODES, RANDOM)
        }
        found = {name: classes_told(classes, own, codes[name][id(judged)]) for name, own in signs.items()}
        generator = np.random.default_rng(self.subject.settings.seed)
        dealt = RowClasses(generator.permutation(classes.of_held_out), classes.representatives)
        found[SHUFFLED] = classes_told(dealt, generator.permuted(signs[CODES], axis=0), judged.codes)
        return found

    def _features(
        self, codes: Mapping[str, Mapping[int, Any]], white: Whitening, learnt: Sampled
    ) -> dict[str, Features]:
        """What labels are decoded from."""
        mean = learnt.rows.mean(0, dtype=np.float64).astype(np.float32)
        widest = np.sort(np.argsort(-learnt.rows.var(0), kind="stable")[:_COORDINATES])

        def of(name: str) -> Features:
            return lambda part: codes[name][id(part.sample)][part.chosen]

        return {
            **{name: of(name) for name in (CODES, RANDOM, ROWS)},
            COORDINATES: lambda part: (part.sample.rows[part.chosen] - mean)[:, widest],
            WHOLE: lambda part: white(part.sample.rows[part.chosen]).numpy(),
        }

    def _told(self, question: Question, features: Mapping[str, Features]) -> LabelTold:
        settings = self.subject.settings
        groups = self.subject.held_out.groups()[question.score.sample.index[question.score.chosen]]
        return label_told(question, features, groups, resamples=settings.bootstrap, seed=settings.seed)

    @staticmethod
    def _token(label: LabelTold, judged: Sampled) -> tuple[Verdict, str, int]:
        """Whether the token follows from atoms that are functions of it, of those that fire on some rows."""
        own, part = label.signs[CODES], label.question.score
        often = np.rint(own.rate * len(part.labels)) >= LEAST
        functions = np.flatnonzero(own.function & often & ~np.isnan(own.rajski))
        if not len(functions):
            return (
                Verdict.NOT_APPLICABLE,
                f"none of {int(often.sum()):,} atoms that fire on {LEAST} rows or more is a function of the token",
                0,
            )
        kept = functions[np.argsort(-own.information[functions], kind="stable")[:_FUNCTIONS]]
        space = SampleSpace.of_samples(len(part.labels))
        signs = Signs.of(judged.codes[part.chosen][:, kept], part.labels)
        components = [space.variable(signs.column(place), f"atom {atom}") for place, atom in enumerate(kept)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewSamplesWarning)  # there are as many rows as there are
            found = perfect_reconstruction(space.variable(part.labels, "token"), components, resamples=0)
        return _VERDICTS[found.verdict], found.why, len(functions)

    # ------------------------------------------------------------------------------------------ what is said

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section."""
        told: Told = found[self.name]
        numbers = {
            "train_rows": float(told.train_rows),
            "held_out_rows": float(told.held_out_rows),
            "classes": float(told.count),
        }
        if told.classes is not None:
            numbers |= class_numbers(told.classes)
        for label in told.labels:
            numbers |= label_numbers(label)
        return Section(
            name=self.name,
            title=self.title,
            numbers=numbers,
            claims=tuple(self._claims(told)),
            tables=tables(told.classes, told.labels),
            notes=tuple(self._notes(told)),
        )

    @staticmethod
    def _claims(told: Told) -> Iterator[Claim]:
        for label in told.labels:
            if label.question.name != "token" or told.token is None:
                continue
            verdict, why, functions = told.token
            yield Claim(
                name="token",
                statement=(
                    f"Which of {label.question.classes} classes of tokens a row has follows from the atoms that are "
                    "functions of it."
                ),
                verdict=verdict,
                why=why,
                source="Delsol et al. 2024 (arXiv 2306.15540), perfect reconstruction",
                computed_on=f"{len(label.question.score.labels):,} held-out rows",
                value=float(functions),
                inputs={"told": label.told[CODES].value, "bits": label.bits},
                nulls={
                    "random directions": label.told[RANDOM].value,
                    "training rows as directions": label.told_by(ROWS),
                    "shuffled labels": label.told_by(SHUFFLED),
                },
            )

    def _notes(self, told: Told) -> Iterator[str]:
        for name, reason in told.left_out.items():
            yield f"Not asked for {name}: {reason}."
        if told.classes is None:
            yield "There are too few rows for classes of them."
        else:
            if told.count < self.subject.settings.classes:
                yield f"There are {told.count} classes, as many as have rows enough and representatives of their own."
            if told.classes[CODES].searched == MOST_ATOMS:
                yield f"Classes are told by {MOST_ATOMS:,} atoms, those whose signs there differ most."
        if told.per_row > 0.9 * self.subject.num_atoms:
            yield "Nearly all atoms fire on every row: it is the sign of a code that is looked at."
        if self.limit < self.subject.settings.probe_rows:
            yield (
                f"Up to {self.limit:,} rows of each split were looked at, as many as memory_mib="
                f"{self.subject.settings.memory_mib} holds."
            )
