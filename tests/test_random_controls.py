"""What random dictionaries earn of the joint claim, and the holes it has to close."""

import math

import numpy as np
import pytest
import torch
from judging import Given, Pursuer, dead, find, subject_of

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import SITE
from atoms.activations.synthetic import write_rows
from atoms.checks import CheckSettings, Verdict, certify
from atoms.checks.bootstrap import Interval
from atoms.checks.joint import upper_end, verdict_of
from atoms.checks.random_controls import ISOTROPIC, LIKE_ROWS, _steps, random_controls
from atoms.checks.recovery_margins import CERTIFIED, recovery_margins
from atoms.checks.row_certificates import RowCertificatesCheck
from atoms.geometry.inner_product import unit_rows
from atoms.sae import SparseCodes
from atoms.units import PCA, DataUnits, KMeans, RandomUnits
from atoms.units.pursuit import orthogonal_matching_pursuit

CPU = {"accelerator": "cpu", "devices": 1}


@pytest.fixture(scope="module")
def data(planted_store):
    return ActivationDataModule(store=str(planted_store), batch_size=256, pool_mib=8)


@pytest.mark.parametrize("one_sided", [False, True])
def test_by_the_definition(data, one_sided):
    """Pursue row by row in S, stop where the raw error is within eta, and certify what was found."""
    unit = Pursuer(data.truth, data.geometry(SITE), 2, nonnegative=one_sided)
    unit.centre = data.moments(SITE).mean.float()
    subject = subject_of(unit, data, null_rows=120, rows=500, max_k=4)
    rows = find(RowCertificatesCheck(subject))
    assert rows.one_sided is one_sided
    control = random_controls(subject, rows)[ISOTROPIC]
    assert control.rows == 120

    generator = torch.Generator().manual_seed(0)
    drawn = unit_rows(torch.randn(24, 16, generator=generator, dtype=torch.float64))
    exact = subject.held_out.sample(120, limit=500)[SITE].double()
    centred = exact - subject.train.moments.mean

    def earned(nonnegative: bool, most: int) -> float:
        held = 0
        for row in centred:
            for k in _steps(max(most, 4), 4):
                code = orthogonal_matching_pursuit(
                    subject.geometry.whiten(row[None]), drawn, k, nonnegative=nonnegative
                )
                left = row - subject.geometry.unwhiten(code.coefficients @ drawn[code.support[0].clamp_min(0)])[0]
                if left.square().sum() <= 0.2 * row.square().sum():
                    margins = recovery_margins(drawn, code.support.clamp_min(0), code.coefficients)
                    held += bool((margins.one_sided if nonnegative else margins.fuchs) < CERTIFIED)
                    break
        return held / 120

    expected = earned(False, control.k or 4)
    if one_sided:
        expected = max(expected, earned(True, 4))
    assert control.f == pytest.approx(expected)


def test_reaches_the_unit_s_fidelity_on_the_same_rows(data):
    unit = Pursuer(data.truth, data.geometry(SITE), 2)
    unit.centre = data.moments(SITE).mean.float()
    subject = subject_of(unit, data, null_rows=200, rows=500)
    sample = subject.held_out.sample(200, limit=500)[SITE]
    exact, rebuilt = sample.double(), unit.decode(unit.encode(sample)).double()
    own = 1 - (exact - rebuilt).square().sum() / (exact - exact.mean(0)).square().sum()
    found = random_controls(subject, find(RowCertificatesCheck(subject)))[ISOTROPIC]
    assert found.k is not None
    assert found.k > 2
    place = found.steps.index(found.k)
    assert found.curve[place] == found.r2 >= own > found.curve[place - 1]


def test_what_was_pursued_for_other_rows_is_not_taken(data):
    """Another seed of rows, another sample: the cache of supports must tell them apart."""
    unit = Pursuer(data.truth, data.geometry(SITE), 2)
    unit.centre = data.moments(SITE).mean.float()

    def control(**settings):
        subject = subject_of(unit, data, **settings)
        return random_controls(subject, find(RowCertificatesCheck(subject)))[LIKE_ROWS]

    few, other = control(null_rows=60, rows=500), control(null_rows=60, rows=130)
    assert few.curve != other.curve
    assert control(null_rows=60, rows=500) == few


def test_numbers_of_atoms_that_are_tried():
    assert _steps(16, 5) == [1, 2, 3, 4, 5, 6, 8, 12, 16]
    assert _steps(1, 1) == [1]


# ------------------------------------------------------------------------------------------ the verdict


@pytest.mark.parametrize(
    ("f", "control", "verdict"),
    [
        (Interval(0.9, 0.88, 0.92), 0.1, Verdict.GUARANTEED),
        (Interval(0.9, 0.88, 0.92), 0.87, Verdict.VACUOUS),
        (Interval(0.51, 0.35, 0.66), 0.1, Verdict.NOT_GUARANTEED),
        (Interval(0.4, 0.38, 0.42), 0.9, Verdict.NOT_GUARANTEED),
        (Interval(0.9, math.nan, math.nan), 0.1, Verdict.GUARANTEED),
    ],
)
def test_verdicts(f, control, verdict):
    assert verdict_of(f, 0.5, {"it": control}, {"it": upper_end(control, 1000)})[0] is verdict


def test_upper_end_holds_the_share_it_should():
    drawn = np.random.default_rng(0).binomial(200, 0.3, 4000) / 200
    assert np.mean([upper_end(share, 200) >= 0.3 for share in drawn]) == pytest.approx(0.975, abs=0.01)
    assert 1 > upper_end(0.0, 100) > 0


# ------------------------------------------------------------------------------------------ what must not be guaranteed


class Noise:
    """Rows of a law, every one a document of its own."""

    seed = 0

    def __init__(self, name: str, width: int, draw) -> None:
        self.name, self.width, self.draw = name, width, draw

    @property
    def identity(self):
        return {"kind": self.name}

    def widths(self):
        return {"noise": self.width}

    def split_rows(self):
        return {"train": 4000, "val": 1000, "test": 0}

    def blocks(self, span):
        generator = np.random.default_rng([len(span.split), span.index])
        return {"noise": torch.from_numpy(self.draw(generator, span.rows).astype(np.float32))}


def few_directions(generator, rows):
    basis = np.linalg.qr(np.random.default_rng(5).standard_normal((32, 32)))[0][:5]
    return generator.standard_normal((rows, 5)) @ basis


def strong_axes(generator, rows):
    return generator.standard_normal((rows, 32)) * np.r_[np.full(5, 10.0), np.full(27, 0.3)]


def tilted_mean(generator, rows):
    axis = np.eye(32)[0] * np.cos(np.deg2rad(75)) + np.eye(32)[1] * np.sin(np.deg2rad(75))
    return generator.standard_normal((rows, 32)) * np.r_[10.0, np.full(31, 0.5)] + 10 * axis


def crowded(generator, rows):
    where = generator.random(rows)[:, None] < 0.6
    near = 3 * np.eye(32)[0] + 0.05 * generator.standard_normal((rows, 32))
    return np.where(where, near, 4 * generator.standard_normal((rows, 32)))


class Padded(RandomUnits):
    """Random directions; rows that fail anyway get a dense code, which raises R² and nothing else."""

    def encode(self, rows):
        codes = super().encode(rows)
        error = (rows - self.decode(codes)).square().sum(1) / (rows - self.centre).square().sum(1)
        dense = codes.to_dense()
        dense[error > 0.2] = (
            (rows - self.centre)[error > 0.2].double() @ torch.linalg.pinv(self.atoms.double())
        ).float()
        return SparseCodes.from_dense(dense)


def never_fires():
    unit = dead(32, 128)
    unit.centre = 3 * torch.eye(32)[0]
    return unit


def isotropic(generator, rows):
    return generator.standard_normal((rows, 8))


@pytest.mark.parametrize(
    ("draw", "width", "unit", "settings"),
    [
        (few_directions, 32, DataUnits(atoms=512, k=1), {}),
        (few_directions, 32, DataUnits(atoms=2048, k=1), {}),
        (strong_axes, 32, KMeans(atoms=512), {}),
        (strong_axes, 32, DataUnits(atoms=2048, k=1), {}),
        (tilted_mean, 32, PCA(atoms=1), {"max_k": 1}),
        (tilted_mean, 32, PCA(), {"max_k": 2}),
        (crowded, 32, never_fires(), {}),
        (isotropic, 8, Padded(atoms=1024, k=1, seed=3), {"max_k": 2}),
        (isotropic, 8, RandomUnits(atoms=1024, k=1, seed=3), {"max_k": 2}),
    ],
)
def test_structureless_rows_and_worthless_units_never_earn_it(draw, width, unit, settings, tmp_path):
    write_rows(Noise(draw.__name__, width, draw), tmp_path / "store", "draw")
    skip = ["l1", "isometry", "identifiability", "stability", "use", "shift", "metric"]
    asked = CheckSettings(null_rows=512, bootstrap=50, skip=skip, **settings)
    claim = certify(unit, tmp_path / "store", settings=asked, trainer=CPU).claims()["joint.atoms"]
    assert claim.verdict in (Verdict.VACUOUS, Verdict.NOT_GUARANTEED), claim.why


def test_one_sided_uniqueness_is_said_to_be_so(planted_store):
    truth = ActivationDataModule(store=str(planted_store)).truth.float()
    unit = Given(truth, lambda rows: (rows @ truth.T).clamp_min(0) * ((rows @ truth.T) > 0.5))
    asked = CheckSettings(
        rows=200, train_rows=100, null_rows=64, bootstrap=10, max_k=4, skip=["l1", "use", "stability"]
    )
    found = certify(unit, planted_store, settings=asked, trainer=CPU)
    claim, numbers = found.claims()["joint.atoms"], found.numbers()
    assert "among codes without negative coefficients" in claim.statement
    assert "among codes without negative coefficients" in found.sentence
    assert numbers["joint/f_two_sided"] <= numbers["joint/f"]
