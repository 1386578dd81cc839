"""Condition numbers of a unit, of its rows and of what rows use: against closed forms, and beside what is random."""

import math
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from judging import Given, assert_plain, dead, judge, subject_of

from atoms.checks.certificate import Certificate
from atoms.checks.check import Subject
from atoms.checks.claim import Section, Verdict
from atoms.checks.conditioning import MATRICES, Conditioning
from atoms.checks.isometry import IsometryCheck
from atoms.checks.separability import SeparabilityCheck
from atoms.checks.settings import CheckSettings
from atoms.checks.support_condition import SupportCondition
from atoms.conditioning import effective_rank, entropy_loss, shape_null, spectrum
from atoms.conditioning.random_spectrum import random_spectrum
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.sae import ThresholdSAE
from atoms.units import PCA, RandomUnits, TrainedUnit, Unit

WIDTH, ROWS = 8, 40


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(seed: int, width: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, width, width)).Q


def moments(covariance: torch.Tensor, mean: torch.Tensor | float = 0.0, count: int = 100_000) -> Moments:
    mean = torch.zeros(len(covariance), dtype=torch.float64) + mean
    return Moments(count, count * mean, count * (covariance + torch.outer(mean, mean)))


def given_rows(unit: Unit, about: Moments | None = None) -> Subject:
    """A unit judged on rows of given moments; white ones about zero where nothing else is said."""
    about = about or moments(torch.eye(unit.atoms.shape[1], dtype=torch.float64))
    split = oracle.Rows(AtomicInnerProduct.from_moments(about), ROWS)
    vars(split)["moments"] = about
    return Subject(unit, split, split, CheckSettings(), torch.device("cpu"))


def unit_of(atoms: torch.Tensor, centre: torch.Tensor | None = None) -> Given:
    found = Given(atoms, lambda rows: rows, centre)
    found.atoms = atoms
    return found


def section_of(subject: Subject, codes: torch.Tensor | None = None, others: bool = True) -> Section:
    """What is said of codes (rows, A); of all atoms in every row where nothing else is said."""
    codes = torch.ones(ROWS, subject.num_atoms, dtype=torch.float64) if codes is None else codes
    check, supports = Conditioning(subject), IsometryCheck(subject)
    for start in range(0, len(codes), 16):
        batch = oracle.encoded(subject, codes[start : start + 16], start=start)
        check.update(batch)
        supports.update(batch)
    found = {"conditioning": check.compute()}
    if others:
        found |= {"isometry": supports.compute(), "separability": SeparabilityCheck(subject).compute()}
    section = check.report(found)
    assert_plain(section)
    return section


def equiangular(k: int, cosine: float) -> torch.Tensor:
    """k unit vectors (k, k) whose cosines are all the same."""
    gram = (1 - cosine) * torch.eye(k, dtype=torch.float64) + cosine
    return torch.linalg.cholesky(gram) @ orthogonal(1, k)


# ------------------------------------------------------------------------------------------ matrices


def test_orthogonal_atoms_on_white_rows_are_treated_alike():
    section = section_of(given_rows(unit_of(orthogonal(0, WIDTH))))
    for name in MATRICES.keys() - {"encoder", "encoder_raw"}:
        assert section.numbers[f"{name}_kappa"] == pytest.approx(1)
        assert section.numbers[f"{name}_effective_rank"] == pytest.approx(WIDTH)
    assert section.numbers["decoder_entropy_loss"] == pytest.approx(0, abs=1e-9)
    null = shape_null(WIDTH, WIDTH)
    assert section.numbers["decoder_kappa_random"] == null.kappa
    assert section.numbers["decoder_relative"] == pytest.approx(1 / null.kappa)
    assert section.numbers["whitening_kappa"] == pytest.approx(1)
    assert section.numbers["growth_max"] == pytest.approx(1)
    assert section.notes == ("The unit has no encoder that is a matrix.",)


def test_atoms_that_come_twice_are_singular_where_they_are_needed():
    basis = orthogonal(0, WIDTH)
    twice = section_of(given_rows(unit_of(torch.cat([basis[:-1], basis[:1]]))), others=False)
    assert twice.numbers["decoder_kappa"] == math.inf
    assert f"Singular, of rank {WIDTH - 1} of {WIDTH}: {MATRICES['decoder']}." in twice.notes
    spare = section_of(given_rows(unit_of(torch.cat([basis, basis[:1]]))), others=False)
    assert spare.numbers["decoder_kappa"] == pytest.approx(math.sqrt(2))  # one direction has the weight of two


def test_infinite_condition_numbers_are_no_numbers_of_a_certificate():
    from certificates import certificate

    basis = orthogonal(0, WIDTH)
    section = section_of(given_rows(unit_of(torch.cat([basis[:-1], basis[:1]]))), others=False)
    whole = certificate()
    written = Certificate(whole.unit, whole.rows, "", (section,), {}).to_json()
    assert "Infinity" not in written
    assert "conditioning/decoder_kappa" not in Certificate(whole.unit, whole.rows, "", (section,), {}).numbers()


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.floats(-0.99, 0.95))
def test_equiangular_atoms_have_the_condition_number_of_theirs(k, cosine):
    cosine = cosine / (k - 1) if cosine < 0 else cosine
    high, low = sorted((1 + (k - 1) * cosine, 1 - cosine), reverse=True)
    numbers = section_of(given_rows(unit_of(equiangular(k, cosine)))).numbers
    assert numbers["decoder_kappa"] == pytest.approx(math.sqrt(high / low))
    assert numbers["growth_q50"] == pytest.approx(math.sqrt(high / low))


def test_the_unit_of_activations_and_the_lengths_of_atoms_change_nothing():
    covariance, mean = torch.diag(torch.linspace(0.1, 30, WIDTH, dtype=torch.float64)), normal(3, WIDTH)
    sae = ThresholdSAE(WIDTH, 24, geometry=AtomicInnerProduct.from_moments(moments(covariance, mean)), power=0.5)
    unit = TrainedUnit(sae, name="trained", site=None)
    plain = section_of(given_rows(unit, moments(covariance, mean)), others=False).numbers
    for factor in (1000.0, 2.0**-20):
        scaled = Scaled(unit, torch.tensor(factor))
        scaled.centre, scaled.weights = factor * unit.centre, unit.encoder_weights / factor
        found = section_of(given_rows(scaled, moments(factor**2 * covariance, factor * mean)), others=False).numbers
        assert found == pytest.approx(plain, rel=1e-4)
    lengths = torch.linspace(0.01, 100, 24)[:, None]
    other = section_of(given_rows(Scaled(unit, lengths), moments(covariance, mean)), others=False).numbers
    assert other["decoder_raw_kappa"] > 1.5 * plain["decoder_raw_kappa"]
    for name in ("decoder", "decoder_aip", "decoder_unit", "encoder"):
        assert other[f"{name}_kappa"] == pytest.approx(plain[f"{name}_kappa"], rel=1e-4)


class Scaled(Unit):
    """A unit with longer atoms, and an encoder that makes coefficients shorter by as much."""

    def __init__(self, unit: TrainedUnit, lengths: torch.Tensor) -> None:
        self.name, self.centre = "scaled", unit.centre
        self.atoms, self.weights = unit.atoms * lengths, unit.encoder_weights / lengths

    @property
    def encoder_weights(self) -> torch.Tensor:
        return self.weights

    def encode(self, rows):
        raise NotImplementedError


def test_the_direction_of_the_mean_row_is_the_centre_s_to_explain():
    """Atoms even about the mean are uneven in S, where the mean row is long."""
    atoms = torch.cat([orthogonal(0, WIDTH), orthogonal(1, WIDTH)])
    rows = moments(torch.eye(WIDTH, dtype=torch.float64), 10 * orthogonal(2, WIDTH)[0])
    centred = section_of(given_rows(unit_of(atoms, rows.mean), rows), others=False).numbers
    assert centred["decoder_kappa"] == pytest.approx(1, abs=1e-5)  # centres are in single precision
    assert centred["rows_kappa"] == pytest.approx(1, abs=1e-5)
    assert centred["decoder_aip_kappa"] > 5
    assert centred["whitening_kappa"] == pytest.approx(math.sqrt(101), rel=1e-3)
    about_zero = section_of(given_rows(unit_of(atoms), rows), others=False).numbers
    assert about_zero["decoder_kappa"] == pytest.approx(centred["decoder_aip_kappa"], rel=1e-6)
    assert about_zero["rows_kappa"] == pytest.approx(about_zero["whitening_kappa"], rel=1e-6)


def test_what_rows_have_comes_back_in_activation_space_alone():
    lengths = torch.linspace(1, 3, WIDTH, dtype=torch.float64)
    white = torch.cat([orthogonal(0, WIDTH), orthogonal(1, WIDTH)])
    numbers = section_of(given_rows(unit_of(white * lengths), moments(torch.diag(lengths**2))), others=False).numbers
    assert numbers["decoder_raw_kappa"] == pytest.approx(3)
    ridged = (lengths.square() + 1e-3 * lengths.square().median()).sqrt()  # as every metric made of rows
    assert numbers["decoder_kappa"] < 1.002
    assert numbers["rows_kappa"] == pytest.approx((ridged[-1] / ridged[0]).item())
    assert numbers["rows_effective_rank"] == pytest.approx(effective_rank(ridged))
    assert numbers["rows_entropy_loss"] == pytest.approx(entropy_loss(ridged))


def test_gaussian_rows_are_as_uneven_as_gaussian_rows():
    drawn = Moments.from_rows(normal(5, 400, 32))
    numbers = section_of(given_rows(unit_of(orthogonal(0, 32)), drawn), others=False).numbers
    null = shape_null(400, 32)
    assert null.kappa_low < numbers["rows_kappa"] < null.kappa_high
    assert numbers["rows_kappa_random"] == null.kappa


def test_fewer_rows_than_dimensions_have_as_many_lengths_as_there_are_rows():
    """The other ones are the ridge alone, where random rows have none."""
    drawn = Moments.from_rows(normal(6, 12, 32))
    subject = given_rows(unit_of(orthogonal(0, 32)), drawn)
    check = Conditioning(subject)
    found = check.compute()["rows"]
    assert found.shape == (12, 32)
    assert len(found.sigma) == min(found.shape)
    white = AtomicInnerProduct.from_moments(drawn.about(subject.unit.centre))
    longest = (white.eigenvalues.flip(0)[:12] + white.ridge_value).sqrt()
    torch.testing.assert_close(found.sigma, longest)
    assert found.numbers()["effective_rank"] <= 12


def test_atoms_that_never_fire_cannot_hide_those_that_do():
    basis = orthogonal(0, WIDTH)
    atoms = torch.cat([basis, basis[:2], basis[:2] + 0.02 * basis[2:4]])
    codes = torch.zeros(ROWS, 12, dtype=torch.float64)
    codes[:, [0, 1, 10, 11]] = 1.0
    section = section_of(given_rows(unit_of(atoms)), codes, others=False)
    cosine = 1 / math.sqrt(1.0004)
    assert section.numbers["decoder_used_kappa"] == pytest.approx(math.sqrt((1 + cosine) / (1 - cosine)))
    assert section.numbers["decoder_kappa"] < 2.5
    assert any(note.endswith(f": {MATRICES['decoder_used']}.") for note in section.notes)
    assert section.tables["matrices"]["rows"][:2] == [12.0, 4.0]
    silent = section_of(given_rows(unit_of(atoms)), torch.zeros(ROWS, 12, dtype=torch.float64), others=False)
    assert "decoder_used_kappa" not in silent.numbers


def test_atoms_without_a_direction_are_left_out():
    atoms = torch.cat([orthogonal(0, WIDTH), torch.zeros(3, WIDTH, dtype=torch.float64)])
    section = section_of(given_rows(unit_of(atoms)), others=False)
    assert section.numbers["decoder_kappa"] == pytest.approx(1)
    assert section.tables["matrices"]["rows"][0] == WIDTH
    with pytest.raises(AtomsError, match=r"^unit given has no atom of non-zero norm"):
        section_of(given_rows(unit_of(atoms[-3:])), others=False)


# ------------------------------------------------------------------------------------------ encoders


def test_a_tied_encoder_of_white_rows_is_the_decoder(train):
    sae = ThresholdSAE(16, 40, geometry=train.geometry, power=1.0, encoder="tied")
    unit = TrainedUnit(sae, name="tied", site="planted")
    unit.centre = torch.zeros(16)  # its metric is about zero
    subject = Subject(unit, train, train, CheckSettings(), torch.device("cpu"))
    numbers = section_of(subject, others=False).numbers
    assert numbers["encoder_kappa"] == pytest.approx(numbers["decoder_kappa"], rel=1e-4)
    assert numbers["encoder_entropy_loss"] == pytest.approx(numbers["decoder_entropy_loss"], rel=1e-3)
    assert numbers["encoder_raw_kappa"] != pytest.approx(numbers["encoder_kappa"], rel=0.1)


def test_a_basis_has_an_encoder_and_principal_axes_are_even_on_centred_rows(planted_data):
    found, section = judge(Conditioning(subject_of(PCA(), planted_data())))
    assert section.numbers["decoder_kappa"] == pytest.approx(1, abs=1e-3)
    assert section.numbers["encoder_kappa"] == pytest.approx(1, abs=1e-3)
    assert section.numbers["encoder_raw_kappa"] == pytest.approx(1)
    assert list(found) == [name for name in MATRICES if name in found] == list(MATRICES)


def test_an_encoder_of_other_rows_is_taken_as_it_is():
    class Transcoder(Given):
        reads = "elsewhere"
        encoder_weights = torch.eye(3).repeat(4, 1)

    section = section_of(given_rows(Transcoder(normal(0, 12, WIDTH), lambda rows: rows)), others=False)
    assert section.numbers["encoder_raw_kappa"] == pytest.approx(1)
    assert "encoder_kappa" not in section.numbers
    assert any(note.startswith("Its encoder reads elsewhere,") for note in section.notes)


def test_units_without_an_encoder(planted_data):
    found, section = judge(Conditioning(subject_of(RandomUnits(atoms=24, k=3), planted_data())))
    assert not {"encoder", "encoder_raw"} & found.keys()
    assert "The unit has no encoder that is a matrix." in section.notes
    assert "What rows' supports show is missing with the check isometry." in section.notes
    assert section.claims == ()


# ------------------------------------------------------------------------------------------ what is random


@pytest.mark.parametrize("shape", [(40, 40), (300, 100), (96, 384), (2000, 50)])
def test_the_spectrum_of_a_random_matrix(shape):
    shares = (np.arange(20) + 0.5) / 20
    found = random_spectrum(*shape, shares)
    drawn = spectrum(normal(7, *shape)).values
    drawn = drawn / drawn.square().mean().sqrt()
    places = (shares * len(drawn)).astype(int)
    np.testing.assert_allclose(found, drawn[places], atol=0.1)
    fine = random_spectrum(*shape, (np.arange(4000) + 0.5) / 4000)
    assert (fine**2).mean() == pytest.approx(1, rel=1e-3)
    # what the shape's null says of all singular values is said of these
    again = effective_rank(torch.from_numpy(random_spectrum(*shape, (np.arange(min(shape)) + 0.5) / min(shape))))
    assert again == pytest.approx(shape_null(*shape).effective_rank, rel=0.02)


def test_random_directions_earn_no_warning_and_no_claim():
    white = torch.nn.functional.normalize(normal(0, 256, 64), dim=1)
    section = section_of(given_rows(unit_of(white)), oracle.codes(256, 5, 0.5, ROWS))
    assert section.numbers["decoder_relative"] == pytest.approx(1, abs=0.2)
    assert section.numbers["worse_than_random"] == pytest.approx(0.5, abs=0.25)
    assert section.claims[0].verdict is Verdict.NOT_APPLICABLE
    assert not any(note.startswith(("One direction", "Atoms that")) for note in section.notes)


# ------------------------------------------------------------------------------------------ supports


@pytest.mark.parametrize("cosine", [0.3, -0.3])
def test_two_atoms_attain_the_bound(cosine):
    section = section_of(given_rows(unit_of(equiangular(2, cosine))))
    (claim,) = section.claims
    assert claim.verdict is Verdict.NOT_REFUTED
    assert claim.value == pytest.approx(1)
    assert (claim.threshold, claim.inputs["promised"]) == (1.0, ROWS)
    assert claim.nulls == {"random atoms": pytest.approx(1)}
    assert section.numbers["slack_max"] == pytest.approx(1)
    assert section.numbers["growth_max"] == pytest.approx(math.sqrt(1.3 / 0.7))
    even = math.exp(-(0.65 * math.log(0.65) + 0.35 * math.log(0.35))) / 2  # of eigenvalues 1.3 and .7
    assert section.numbers["support_rank_q05"] == section.numbers["support_rank_q50"] == pytest.approx(even)
    assert section.numbers["support_rank_random_q50"] == pytest.approx(even)


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 9), st.floats(0.01, 0.99), st.sampled_from([-1, 1]))
def test_of_three_or_more_one_end_of_the_bound_is_attained(k, share, sign):
    mu = share / (k - 1)
    numbers = section_of(given_rows(unit_of(equiangular(k, sign * mu)))).numbers
    bound = (1 + (k - 1) * mu) / (1 - (k - 1) * mu)
    kappa = (1 + (k - 1) * mu) / (1 - mu) if sign > 0 else (1 + mu) / (1 - (k - 1) * mu)
    assert numbers["promised"] == 1
    assert numbers["slack_max"] == pytest.approx(kappa / bound, rel=1e-6)
    assert numbers["slack_max"] < 1


def test_coherence_below_that_of_the_atoms_is_a_fault_and_says_so():
    subject = given_rows(unit_of(equiangular(3, 0.3)))
    check = IsometryCheck(subject)
    check.update(oracle.encoded(subject, torch.ones(16, 3, dtype=torch.float64)))
    isometry = check.compute()
    lies = SimpleNamespace(maximum=0.25, random=0.1, welch=0.0)
    claim = SupportCondition.of(isometry, lies).claim()
    assert claim.verdict is Verdict.REFUTED
    assert claim.why.startswith(
        "row 0: 3 atoms have eigenvalues from 0.7 to 1.6, which a largest |cos| of 0.25 forbids"
    )
    assert "please report it" in claim.why
    assert claim.inputs["broken"] == 16


def test_supports_of_hundreds_of_orthogonal_atoms_break_no_bound():
    section = section_of(given_rows(unit_of(orthogonal(0, 256))))
    assert section.claims[0].verdict is Verdict.NOT_REFUTED
    assert section.numbers["slack_max"] == pytest.approx(1)
    assert section.numbers["worse_than_random"] == 0.5


def test_the_oracle_is_promised_what_is_known_of_it():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), ROWS)
    check = IsometryCheck(judged)
    sizes = [1, 2, 16, 17, 40]
    for place, k in enumerate(sizes):
        check.update(oracle.encoded(judged, oracle.codes(oracle.ATOMS, k, 0.5, 8, seed=k), start=8 * place))
    separability = SeparabilityCheck(judged).compute()
    found = SupportCondition.of(check.compute(), separability)
    numbers = found.numbers()
    assert numbers["promised"] == pytest.approx(2 / 4)  # those of 2 and 16: 15/16 is below 1, 16/16 is not
    most = [1 + int(0.999999 / mu) for mu in (separability.random, separability.welch)]
    assert numbers["promised_random"] == sum(1 < k <= most[0] for k in sizes) / 4
    assert numbers["promised_least"] == sum(1 < k <= most[1] for k in sizes) / 4
    assert found.claim().verdict is Verdict.NOT_REFUTED
    table = found.table()
    assert table["observed"] == sorted(table["observed"])
    assert table["observed"][-1] == numbers["growth_max"]


def test_atoms_used_together_that_are_nearer_than_random_ones_are_named():
    basis = orthogonal(0, 64)
    atoms = torch.cat([basis, torch.nn.functional.normalize(basis + basis.roll(1, 0), dim=1)])
    codes = torch.zeros(ROWS, 128, dtype=torch.float64)
    for row in range(ROWS):
        codes[row, [row, 64 + row]] = 1.0  # each with a neighbour at 45 degrees
    section = section_of(given_rows(unit_of(atoms)), codes)
    assert section.numbers["worse_than_random"] > 0.9
    assert any(note.startswith("Atoms that rows use together are nearer") for note in section.notes)


def test_dependent_supports_and_single_atoms():
    atoms = torch.cat([torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[:1]])
    codes = torch.zeros(ROWS, 5, dtype=torch.float64)
    codes[:, [0, 4]] = 1.0
    section = section_of(given_rows(unit_of(atoms)), codes)
    assert math.isnan(section.numbers["growth_max"])
    assert section.claims[0].verdict is Verdict.NOT_APPLICABLE
    assert section.claims[0].why == f"coherence, 1.0000, promises nothing of any of {ROWS} supports"
    assert section.numbers["worse_than_random"] > 0.9
    codes[:, 4] = 0
    alone = section_of(given_rows(unit_of(atoms)), codes)
    assert alone.claims[0].why == "no sampled row uses two atoms"
    assert math.isnan(alone.numbers["worse_than_random"])


def test_without_cosines_errors_are_still_measured():
    subject = given_rows(unit_of(equiangular(3, 0.3)))
    check = IsometryCheck(subject)
    check.update(oracle.encoded(subject, torch.ones(16, 3, dtype=torch.float64)))
    found = SupportCondition.of(check.compute(), None)
    assert found.claim().verdict is Verdict.NOT_APPLICABLE
    assert found.claim().why == "the largest |cos| is not known"
    assert math.isnan(found.numbers()["promised_random"])
    assert found.numbers()["growth_max"] == pytest.approx(math.sqrt(1.6 / 0.7))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_errors_of_a_row_grow_in_its_coefficients_at_most_by_the_root(seed, k):
    atoms = torch.nn.functional.normalize(normal(seed, k, WIDTH), dim=1)
    _, sigma, directions = torch.linalg.svd(atoms, full_matrices=False)
    assume(sigma[-1] > 1e-3)
    most = (sigma[0] / sigma[-1]).item()  # the root of the Gram matrix's

    def growth(row: torch.Tensor, error: torch.Tensor) -> float:
        inside = error @ directions.T @ directions
        exact, off = row @ torch.linalg.pinv(atoms), error @ torch.linalg.pinv(atoms)
        return ((off.norm() / exact.norm()) / (inside.norm() / row.norm())).item()

    coefficients, error = normal(seed + 1, k), normal(seed + 2, WIDTH)
    assert growth(coefficients @ atoms, error) <= most * (1 + 1e-9)
    assert growth(directions[0], directions[-1]) == pytest.approx(most)


# ------------------------------------------------------------------------------------------ odd units, devices


def test_dead_units(planted_data):
    _, section = judge(Conditioning(subject_of(dead(16), planted_data(), rows=40)))
    assert section.numbers["decoder_kappa"] == math.inf
    assert "decoder_used_kappa" not in section.numbers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu(planted_data):
    def numbers(device: str) -> dict[str, float]:
        unit = TrainedUnit(
            ThresholdSAE(16, 40, geometry=subject_of(dead(16), planted_data()).geometry), name="x", site="planted"
        )
        base = subject_of(unit, planted_data(), rows=40)
        subject = Subject(unit.to(torch.device(device)), base.train, base.held_out, base.settings, torch.device(device))
        check = Conditioning(subject)
        return check.report({"conditioning": check.compute()}).numbers

    assert numbers("cuda") == pytest.approx(numbers("cpu"), rel=1e-4)
