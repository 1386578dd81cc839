"""Whether single atoms tell what a token is, where it stands and which document it is from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Section
from atoms.checks.row_sample import RowSample, Sampled, most_frequent, sample_limit
from atoms.errors import AtomsError

KS = (1, 2, 5, 16)
"""Numbers of features a sparse probe may read."""
TOKENS, DOCUMENTS = 16, 8
"""Most token identities and most documents told apart."""
_LEAST = 10  # rows of a class, and rows outside it, to fit on and to score on
_FEATURES = ("codes", "raw", "random", "shuffled")
_MEASURES = ("auroc", "accuracy", "majority", "f1")

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]
_Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Task:
    """One yes-or-no question about rows.

    Attributes:
        family: ``token``, ``position`` or ``document``.
        name: The class asked for.
        fit: The answer for every row to fit on, (n,) bool.
        score: The answer for every row to score on, (m,) bool.
    """

    family: str
    name: str
    fit: _Mask
    score: _Mask

    @property
    def sound(self) -> bool:
        """Whether either answer has rows enough on both sides."""
        return all(_LEAST <= labels.sum() <= len(labels) - _LEAST for labels in (self.fit, self.score))


@dataclass(frozen=True)
class Score:
    """How one probe did on the rows it was scored on.

    Attributes:
        family: Of the task.
        task: Name of the task.
        features: ``codes``, ``raw``, ``random``, ``shuffled`` (codes, fitted to labels in random order) or ``dense``.
        k: Number of features it read.
        auroc: Area under the receiver operating characteristic: .5 is chance, 1 perfect.
        accuracy: Share of rows answered rightly.
        majority: Share of rows the more frequent answer alone gets right.
        f1: Harmonic mean of precision and recall of the class.
    """

    family: str
    task: str
    features: str
    k: int
    auroc: float
    accuracy: float
    majority: float
    f1: float


@dataclass(frozen=True)
class UseResult:
    """What probes could tell.

    Attributes:
        scores: Every probe.
        train_rows: Training rows in the sample.
        held_out_rows: Held-out rows in the sample.
    """

    scores: tuple[Score, ...]
    train_rows: int
    held_out_rows: int


class Use(Check):
    """Probes that read k atoms, beside such as read k coordinates of the row, k random projections, or all of it.

    A feature is chosen by the size of its correlation with the label, a logistic regression fitted to the k best. Both
    see training rows alone and are scored on held-out ones. Documents are held out whole, so that which document a row
    is from cannot be asked across splits: there, both halves are rows of held-out documents, the earlier positions to
    fit on and the later ones to score on. The unit has seen none of them.

    Random projections are chosen among as many as there are atoms, so that having much to choose from is no merit.

    Source: Gurnee et al. 2023 (arXiv 2305.01610), sparse probing; Kantamneni et al. 2025 (arXiv 2502.16681), of SAEs.

    Args:
        subject: What is judged.

    Raises:
        AtomsError: If the store says of no row which token it is.
    """

    name: ClassVar[str] = "use"
    title: ClassVar[str] = "Use: k-sparse probes"
    splits: ClassVar[frozenset[str]] = frozenset({"val", "train"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._tokens = {"train": subject.train.tokens(), "val": subject.held_out.tokens()}
        if any((tokens["token_id"] < 0).all() for tokens in self._tokens.values()):
            raise AtomsError("the store does not say which tokens its rows are (token_id is -1): nothing to probe for")
        self.limit = sample_limit(subject, _LEAST)
        self._samples = {split: RowSample(self.limit, subject.settings.seed) for split in self._tokens}

    def update(self, batch: Encoded) -> None:
        """Keep a share of the rows and their codes."""
        self._samples[batch.split].add(batch.index, batch.rows, batch.codes)

    def compute(self) -> UseResult:
        """Fit and score all probes."""
        train, held_out = (self._samples[split].gather() for split in ("train", "val"))
        if train is None or held_out is None:
            raise AtomsError("probes need training rows to fit on and held-out rows to score on: give the store both")
        across = [*self._token_tasks(train, held_out), *self._position_tasks(train, held_out)]
        within, earlier, later = self._document_tasks(held_out)
        scores: list[Score] = []
        for fit, score, tasks in ((train, held_out, across), (earlier, later, within)):
            if tasks := [task for task in tasks if task.sound]:
                scores += self._probe(fit, score, tasks)
        if not scores:
            raise AtomsError(
                f"no token, position or document has {_LEAST} rows to fit on and {_LEAST} to score on among "
                f"{len(train.index):,} training and {len(held_out.index):,} held-out rows: judge more rows "
                "(checks.rows, checks.probe_rows)"
            )
        return UseResult(tuple(scores), len(train.index), len(held_out.index))

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section; scalars are means over families of means over their tasks, so that each family counts once."""
        result: UseResult = found[self.name]
        families = list(dict.fromkeys(score.family for score in result.scores))
        probes = list(dict.fromkeys((score.features, score.k) for score in result.scores))
        table: dict[str, list[Any]] = {name: [] for name in ("family", "features", "k", "tasks", *_MEASURES)}
        of_family: dict[tuple[str, int], list[float]] = {probe: [] for probe in probes}
        for family in families:
            for features, k in probes:
                own = [s for s in result.scores if (s.family, s.features, s.k) == (family, features, k)]
                means = {name: float(np.mean([getattr(s, name) for s in own])) for name in _MEASURES}
                of_family[features, k].append(means["auroc"])
                for name, value in {
                    "family": family,
                    "features": features,
                    "k": float(k),
                    "tasks": float(len(own)),
                }.items():
                    table[name].append(value)
                for name, value in means.items():
                    table[name].append(value)
        auroc = {probe: float(np.mean(values)) for probe, values in of_family.items()}
        numbers = {f"auroc_{features}_{k}": auroc[features, k] for features in _FEATURES for k in KS}
        numbers |= {f"gap_{k}": auroc["codes", k] - auroc["raw", k] for k in KS}
        numbers["auroc_dense"] = auroc["dense", self.subject.width]
        numbers |= {"tasks": float(len({(s.family, s.task) for s in result.scores}))}
        numbers |= {"train_rows": float(result.train_rows), "held_out_rows": float(result.held_out_rows)}
        columns = ("family", "task", "features", "k", *_MEASURES)
        tasks: dict[str, list[Any]] = {
            name: [float(v) if isinstance(v := getattr(score, name), int) else v for score in result.scores]
            for name in columns
        }
        return Section(
            name=self.name,
            title=self.title,
            numbers=numbers,
            tables={"families": table, "tasks": tasks},
            notes=tuple(self._remarks(families)),
        )

    def _remarks(self, families: list[str]) -> list[str]:
        remarks = []
        if "document" in families:
            remarks.append(
                "Which document a row is from is fitted on the earlier half of the positions of held-out documents and "
                "scored on the later half, since no document is both in the training split and held out."
            )
        remarks += [
            f"Not probed for {family}: no class has {_LEAST} rows and {_LEAST} others to fit on and to score on."
            for family in ("token", "position", "document")
            if family not in families
        ]
        if self.limit < self.subject.settings.probe_rows:
            remarks.append(
                f"Probes saw {self.limit:,} rows of each split, as many as memory_mib="
                f"{self.subject.settings.memory_mib} holds."
            )
        return remarks

    # ------------------------------------------------------------------------------------------ what is asked

    def _labels(self, split: str, sample: Sampled, name: str) -> NDArray[np.int64]:
        return np.asarray(self._tokens[split][name][sample.index], np.int64)

    def _token_tasks(self, train: Sampled, held_out: Sampled) -> list[Task]:
        """Is it this token? Of the most frequent ones."""
        here, there = self._labels("train", train, "token_id"), self._labels("val", held_out, "token_id")
        return [Task("token", str(token), here == token, there == token) for token in most_frequent(here, TOKENS)]

    def _position_tasks(self, train: Sampled, held_out: Sampled) -> list[Task]:
        """Is it in the later half of the positions?"""
        here, there = self._labels("train", train, "position"), self._labels("val", held_out, "position")
        middle = np.median(here)
        return [Task("position", f"after {middle:g}", here > middle, there > middle)]

    def _document_tasks(self, held_out: Sampled) -> tuple[list[Task], Sampled, Sampled]:
        """Is it from this document? Of the largest ones; with the rows to fit on and to score on."""
        documents, positions = (self._labels("val", held_out, name) for name in ("doc_id", "position"))
        largest = most_frequent(documents, DOCUMENTS)
        earlier = np.zeros(len(documents), bool)
        for document in largest:
            own = documents == document
            earlier[own] = positions[own] < np.median(positions[own])
        of_largest = np.isin(documents, largest)
        fit, score = np.flatnonzero(of_largest & earlier), np.flatnonzero(of_largest & ~earlier)
        tasks = [
            Task("document", str(document), documents[fit] == document, documents[score] == document)
            for document in largest
        ]
        return tasks, held_out.take(fit), held_out.take(score)

    # ------------------------------------------------------------------------------------------ how well it is told

    def _probe(self, fit: Sampled, score: Sampled, tasks: list[Task]) -> list[Score]:
        """Fit and score all probes of tasks that share their rows."""
        generator = torch.Generator().manual_seed(self.subject.settings.seed)
        drawn = torch.randn(self.subject.num_atoms, self.subject.width, dtype=torch.float64, generator=generator)
        to_white = self.subject.geometry.map()
        kinds = {
            "codes": _codes(fit, score),
            "raw": _raw(fit, score),
            "random": _projections(fit, score, (drawn @ to_white).numpy()),
        }
        kinds["shuffled"] = kinds["codes"]
        # the same probes as of the raw row, in coordinates that let the optimiser converge
        white = [(sample.rows @ to_white.float().numpy()) for sample in (fit, score)]
        dense = [(values - white[0].mean(0)) / _positive(white[0].std(0)) for values in white]
        shuffle = np.random.default_rng(self.subject.settings.seed)
        scores = []
        for task in tasks:
            for name, features in kinds.items():
                labels = shuffle.permutation(task.fit) if name == "shuffled" else task.fit
                best = np.argsort(-np.abs(features.correlations(labels)), kind="stable")[: max(KS)]
                x_fit, x_score = features.columns(best)
                scores += [_scored(task, name, k, x_fit[:, :k], labels, x_score[:, :k]) for k in KS]
            scores.append(_scored(task, "dense", self.subject.width, dense[0], task.fit, dense[1]))
        return scores


@dataclass(frozen=True, eq=False)
class _Features:
    """Features to choose from, F of them, on n rows to fit on and m rows to score on.

    Attributes:
        mean: Over the rows to fit on, (F,) float64.
        deviation: Standard deviation there, (F,) float64.
        product: From labels (n,) float64 the mean of feature times label, (F,).
        read: From the numbers of k features their values on either set of rows, (n, k) and (m, k).
    """

    mean: _Floats
    deviation: _Floats
    product: Callable[[_Floats], _Floats]
    read: Callable[[_Rows], tuple[_Floats, _Floats]]

    def correlations(self, labels: _Mask) -> _Floats:
        """Correlation of every feature with labels (n,), (F,); 0 for a feature or a label that never changes."""
        share = labels.mean()
        spread = self.deviation * np.sqrt(share * (1 - share))
        together = self.product(labels.astype(np.float64)) - share * self.mean
        return np.where(spread > 0, together / _positive(spread), 0.0)

    def columns(self, chosen: _Rows) -> tuple[_Floats, _Floats]:
        """Chosen features on either set of rows, in standard deviations from their mean."""
        mean, deviation = self.mean[chosen], _positive(self.deviation[chosen])
        fit, score = self.read(chosen)
        return (fit - mean) / deviation, (score - mean) / deviation


def _codes(fit: Sampled, score: Sampled) -> _Features:
    by_row, by_atom = fit.codes.astype(np.float64), (fit.codes.tocsc(), score.codes.tocsc())
    mean = np.asarray(by_row.mean(0)).ravel()
    square = np.asarray(by_row.multiply(by_row).mean(0)).ravel()
    return _Features(
        mean=mean,
        deviation=_deviation(square - mean**2, square),
        product=lambda labels: by_row.T @ labels / len(labels),
        read=lambda chosen: (by_atom[0][:, chosen].toarray(), by_atom[1][:, chosen].toarray()),
    )


def _raw(fit: Sampled, score: Sampled) -> _Features:
    rows = fit.rows
    return _Features(
        mean=rows.mean(0, dtype=np.float64),
        deviation=rows.std(0, dtype=np.float64),
        product=lambda labels: (labels.astype(np.float32) @ rows).astype(np.float64) / len(labels),
        read=lambda chosen: (rows[:, chosen].astype(np.float64), score.rows[:, chosen].astype(np.float64)),
    )


def _projections(fit: Sampled, score: Sampled, readers: _Floats) -> _Features:
    """Projections on directions (F, H), none of which is computed but those chosen: moments of the rows will do."""
    raw = _raw(fit, score)
    centred = fit.rows - raw.mean.astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(centred)
    variance = ((readers @ covariance) * readers).sum(1)
    return _Features(
        mean=readers @ raw.mean,
        deviation=_deviation(variance, variance.max(initial=0.0)),
        product=lambda labels: readers @ raw.product(labels),
        read=lambda chosen: (fit.rows @ readers[chosen].T, score.rows @ readers[chosen].T),
    )


def _scored(task: Task, features: str, k: int, x_fit: Any, labels: _Mask, x_score: Any) -> Score:
    """Fit a probe to features (n, k) and labels (n,), and score it on features (m, k)."""
    probe = LogisticRegression(max_iter=1000).fit(x_fit, labels)
    margin, truth = probe.decision_function(x_score), task.score
    answer = margin > 0
    hits = int((answer & truth).sum())
    share = float(truth.mean())
    return Score(
        family=task.family,
        task=task.name,
        features=features,
        k=k,
        auroc=float(roc_auc_score(truth, margin)),
        accuracy=float((answer == truth).mean()),
        majority=max(share, 1 - share),
        f1=2 * hits / max(1, int(answer.sum() + truth.sum())),
    )


def _deviation(variance: _Floats, scale: Any) -> _Floats:
    """Root of a variance, where what is left of `scale` after subtraction is more than rounding."""
    return np.sqrt(np.where(variance > 1e-12 * scale, variance, 0.0))


def _positive(values: Any) -> Any:
    """Values to divide by: 1 in place of 0."""
    return np.where(values > 0, values, 1)
