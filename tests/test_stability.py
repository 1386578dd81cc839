"""Agreement across seeds: copies are found, chance is known, and what is no agreement of seeds is said."""

import math

import pytest
import torch
from forked import in_a_group
from judging import Projections, find, judge, show, subject_of
from scipy import integrate, special

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.site_rows import SiteRows
from atoms.checks.claim import Verdict
from atoms.checks.seen import Seen, on_a_row
from atoms.checks.stability import Stability, shuffled_directions, weighted_quantile
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.geometry.inner_product import unit_rows

ATOMS, WIDTH = 48, 16


def drawn(seed: int, count: int = ATOMS) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def blurred(atoms: torch.Tensor, seed: int, noise: float) -> torch.Tensor:
    """The atoms in another order, with other signs and lengths, and with noise."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(atoms), generator=generator)
    lengths = torch.rand(len(atoms), 1, generator=generator) + 0.5
    signs = torch.randint(2, (len(atoms), 1), generator=generator) * 2.0 - 1
    return signs * lengths * (atoms[order] + noise * torch.randn(atoms.shape, generator=generator))


@pytest.fixture
def site(planted_data):
    return planted_data(), "planted"


def stability(site, atoms, *others, floor: float = -100.0, **settings) -> Stability:
    """The check of atoms that all fire, but for those of zero norm."""
    units = tuple(Projections(other, floor, name=f"seed {i + 1}") for i, other in enumerate(others))
    return Stability(subject_of(Projections(atoms, floor), *site, units, **{"train_rows": 4800, **settings}))


def section(check: Stability):
    return judge(check)[1]


def test_copies_agree_whatever_order_sign_and_length(site):
    found = section(stability(site, drawn(0), blurred(drawn(0), 1, 0.01)))
    numbers = found.numbers
    assert numbers["mean"] > 0.99
    assert numbers["weighted_mean"] > 0.99
    assert numbers["above_90"] == numbers["weighted_above_70"] == pytest.approx(1)
    assert 0.2 < numbers["negative"] < 0.8
    assert numbers["seeds"] == 2
    (claim,) = found.claims
    assert (claim.name, claim.verdict) == ("seed_stability", Verdict.NOT_REFUTED)
    assert claim.value == numbers["weighted_mean"]
    assert claim.nulls == {"random": numbers["random_weighted_mean"], "shuffled": numbers["shuffled_weighted_mean"]}
    assert found.notes == ()


def test_chance_is_what_strangers_reach(site):
    """Independent directions agree as chance says they do, and the claim is refuted."""
    geometry = AtomicInnerProduct.from_moments(SiteRows(*site, "train").moments)
    isotropic = [geometry.unwhiten(drawn(seed, 200)) for seed in (0, 1)]
    found = section(stability(site, *isotropic))
    numbers = found.numbers
    expected, _ = integrate.quad(lambda t: 1 - special.betainc(0.5, (WIDTH - 1) / 2, t * t) ** 200, 0, 1)
    for name in ("best", "random_best", "shuffled_best"):
        assert numbers[name] == pytest.approx(expected, abs=0.02)
    assert numbers["mean"] == pytest.approx(numbers["random_mean"], abs=0.02)
    assert found.claims[0].verdict is Verdict.REFUTED


def test_the_memory_setting_decides_the_matching(site):
    atoms = drawn(0, 300)  # 300 · 300 · 24 bytes: two MiB and a little
    whole, parts = (section(stability(site, atoms, blurred(atoms, 1, 0.6), memory_mib=m)) for m in (3, 1))
    assert parts.numbers["mean"] <= whole.numbers["mean"] <= whole.numbers["best"]
    assert parts.numbers["best"] == pytest.approx(whole.numbers["best"], abs=1e-9)
    assert whole.numbers["unpaired"] == 0 < parts.numbers["unpaired"]
    assert whole.notes == ()
    assert any("memory_mib=1" in note for note in parts.notes)
    easy, same = (section(stability(site, atoms, blurred(atoms, 1, 0.01), memory_mib=m)) for m in (3, 1))
    assert same.numbers["mean"] == pytest.approx(easy.numbers["mean"], abs=1e-12)


def test_firing_weighs(site):
    """Half of the atoms are found again; those fire on every row, the others on few."""
    rows = SiteRows(*site, "train").sample(400)["planted"]
    kept, lost = drawn(0, 24), drawn(1, 24)
    scale = (rows @ lost.T).quantile(0.9, dim=0)  # projections above 1 are a tenth of all
    check = stability(site, torch.cat([100 * kept, lost / scale[:, None].abs()]), blurred(kept, 2, 0.01), floor=1.0)
    numbers = section(check).numbers
    assert numbers["weighted_mean"] > numbers["mean"] + 0.1
    result = check.compute()
    (agreement,) = result.agreements
    counts = result.firing * 600
    assert torch.allclose(counts, counts.round(), atol=1e-9)
    assert torch.allclose(agreement.weights, result.firing / result.firing.sum())
    assert numbers["weighted_mean"] == pytest.approx(
        float((agreement.absolute * result.firing).sum() / result.firing.sum())
    )


def test_dead_atoms_of_either_side_are_left_out_and_counted(site):
    atoms = drawn(0)
    silent = atoms.clone()
    silent[:5] = 0
    other = blurred(atoms, 1, 0.01)
    other[40:] = 0
    found = section(stability(site, silent, other, floor=0.0))
    assert (found.numbers["dead"], found.numbers["dead_others"], found.numbers["living"]) == (5, 8, 43)
    assert any("5 atoms of projections and 8 of the other seeds" in note for note in found.notes)
    assert found.tables["atoms"]["atom"] == list(range(5, 48))


def test_an_atom_that_fires_on_no_row_is_dead(site):
    """Unlike one of zero norm it has a direction, which would be matched."""
    check = stability(site, drawn(0), drawn(1))
    check.others[0].atoms[3] *= 0  # its direction stays in the check, its codes vanish
    show(check)
    assert check.compute().agreements[0].dead == 1


def test_several_seeds(site):
    found = section(stability(site, drawn(0), blurred(drawn(0), 1, 0.01), drawn(2), drawn(3, 20)))
    seeds = found.tables["seeds"]
    assert seeds["other"] == ["seed 1", "seed 2", "seed 3", *["random"] * 3, "shuffled"]
    assert found.numbers["mean"] == pytest.approx(sum(seeds["mean"][:3]) / 3)
    assert found.numbers["min_mean"] == min(seeds["mean"][:3])
    assert found.claims[0].verdict is Verdict.REFUTED  # by the seeds that found others, whatever the mean
    assert seeds["unpaired"][2] == pytest.approx(28 / 48)
    assert len({len(column) for column in seeds.values()}) == 1
    assert len({len(column) for column in found.tables["atoms"].values()}) == 1


class TestSharedBeginnings:
    """What agrees for another reason than learning is not held to be stable."""

    def refused(self, found, words: str) -> None:
        assert found.claims[0].verdict is Verdict.NOT_APPLICABLE
        assert words in found.claims[0].why
        assert any(words in note for note in found.notes)

    def test_the_same_weights(self, site):
        self.refused(section(stability(site, drawn(0), 2 * drawn(0).flip(0))), "to six digits")

    def test_the_same_first_directions(self, site):
        """Atoms that moved far, but have the numbers they began with."""
        found = section(stability(site, drawn(0) + 0.4 * drawn(1), drawn(0) + 0.4 * drawn(2)))
        assert 0.5 < found.numbers["mean"] < 0.99
        assert found.numbers["same_place"] > 20
        self.refused(found, "have the same number as their partners in seed 1")

    def test_the_same_seed(self, site):
        check = stability(site, drawn(0), blurred(drawn(0), 1, 0.3))
        check.others[0].seed, check.subject.unit.seed = 7, 7
        self.refused(section(check), "began from the same seed, 7")

    def test_strangers_share_numbers_by_chance_alone(self, site):
        for seed in range(3):
            found = section(stability(site, drawn(seed), drawn(seed + 10)))
            assert found.numbers["same_place"] <= 5
            assert found.notes == ()

    @pytest.mark.parametrize("centred", [False, True])
    def test_training_rows(self, site, centred):
        train = SiteRows(*site, "train")
        rows = train.sample(480)["planted"] - centred * train.moments.mean.float()
        found = section(stability(site, rows[:240], rows[240:]))
        assert found.numbers["from_rows"] == pytest.approx(1)
        self.refused(found, "began as training rows")

    def test_what_says_so_itself(self, site):
        check = stability(site, drawn(0), blurred(drawn(0), 1, 0.3))
        check.others[0].initialised_from_data = True
        assert section(check).claims[0].verdict is Verdict.NOT_REFUTED  # one alone shares nothing
        check.subject.unit.initialised_from_data = True
        self.refused(section(check), "began as training rows")

    def test_some_of_the_training_rows_tell_enough(self, site):
        """Of 240 atoms, a tenth of the training rows shows 24."""
        train = SiteRows(*site, "train")
        atoms = train.sample(240)["planted"]
        check = stability(site, atoms, drawn(0))
        geometry = check.subject.geometry
        seen = next(train.batches(480))
        centre = torch.zeros(WIDTH)
        hit = on_a_row(check._directions[0].float(), geometry.whiten(seen), (centre,))
        check._seen[0].look(480, hit)
        share = check._seen[0].pooled().from_rows(torch.arange(240), len(train))
        assert 10 < hit.sum() < 40
        assert share == pytest.approx(min(1, hit.sum().item() / 24))

    def test_too_few_training_rows_tell_nothing(self, site):
        check = stability(site, drawn(0), drawn(1))
        check._seen[0].look(48, torch.zeros(ATOMS, dtype=torch.bool))
        assert math.isnan(check._seen[0].pooled().from_rows(torch.arange(ATOMS), 4800))


def test_one_seed_says_how_to_give_more(site):
    check = stability(site, drawn(0))
    show(check)
    with pytest.raises(AtomsError, match=r"seeds is empty: one seed of projections .* --seeds"):
        check.compute()


def test_nothing_alive_is_said(site):
    check = stability(site, drawn(0), drawn(1), floor=1e9)
    show(check)
    with pytest.raises(AtomsError, match="none of the 48 atoms of unit projections fires"):
        check.compute()


def test_another_site_is_refused(site):
    subject = stability(site, drawn(0), drawn(1)).subject
    subject.others[0].site = "elsewhere"
    with pytest.raises(AtomsError, match="unit seed 1 is of site elsewhere"):
        Stability(subject)


def test_a_crowded_space_proves_nothing(site):
    """A thousand atoms that turn to three of sixteen axes: any dictionary that does so agrees with them."""
    geometry = AtomicInnerProduct.from_moments(SiteRows(*site, "train").moments)
    atoms = geometry.unwhiten(drawn(0, 1000)[:, :3].double() @ geometry.eigenvectors[:, :3].T)
    found = section(stability(site, atoms, blurred(atoms, 1, 0.001)))
    assert found.numbers["shuffled_weighted_mean"] > 0.7 > found.numbers["random_weighted_mean"]
    assert found.claims[0].verdict is Verdict.NOT_APPLICABLE


def test_the_same_numbers_twice(site):
    atoms = drawn(0), blurred(drawn(0), 1, 0.3)
    assert section(stability(site, *atoms)) == section(stability(site, *atoms))
    other_seed = section(stability(site, *atoms, seed=1)).numbers
    assert other_seed["random_mean"] != section(stability(site, *atoms)).numbers["random_mean"]


def test_shuffled_directions_keep_what_turns_to_each_axis():
    rows = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0)) * torch.arange(1, WIDTH + 1)
    geometry = AtomicInnerProduct.from_moments(Moments.from_rows(rows))
    crowded = unit_rows(drawn(1, 300).double() + 5 * geometry.eigenvectors[:, 3])
    found = shuffled_directions(crowded, geometry, torch.Generator().manual_seed(0))
    along, before = (found @ geometry.eigenvectors).square().mean(0), (crowded @ geometry.eigenvectors).square().mean(0)
    assert torch.allclose(along, before, atol=0.03)
    assert along[3] > 0.5
    assert torch.allclose(found.norm(dim=1), torch.ones(300, dtype=torch.float64))


def test_counts_of_ranks_add_up():
    """One rank saw three rows, another two and some training rows, a third none."""
    ranks = [Seen(3) for _ in range(3)]
    ranks[0].update(3, torch.tensor([0, 2, 2]))
    ranks[1].update(2, torch.tensor([1, 2]))
    ranks[1].look(100, torch.tensor([True, False, False]))
    for other in ranks[1:]:
        ranks[0].merge_state(other)
    counts = ranks[0].pooled()
    assert (counts.rows, counts.firing.tolist()) == (5, [1, 1, 3])
    assert (counts.looked_at, counts.on_rows.tolist()) == (100, [1, 0, 0])


def everything(rank: int | None, store: str) -> list[object]:
    """What is found by this rank, or alone; seven batches, so that one rank has one more than the other."""
    atoms = drawn(0)
    site = ActivationDataModule(store=store, batch_size=256, pool_mib=8), "planted"
    check = stability(site, atoms, blurred(atoms, 1, 0.3), atoms[:20], floor=1.0, batch_rows=90, train_rows=500)
    found = find(check, rank=rank or 0, world_size=1 if rank is None else 2)
    return [check.report({"stability": found}), found.firing]


def test_two_ranks_find_what_one_finds(planted_store, tmp_path):
    section, firing = everything(None, str(planted_store))
    for found, share in in_a_group(everything, tmp_path, str(planted_store)):
        assert found == section
        assert torch.equal(share, firing)
        assert 0 < share.min() < share.max() < 1


def test_weighted_quantiles():
    values = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    weights = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    assert [weighted_quantile(values, weights, q) for q in (0.0, 0.2, 0.25, 0.3, 0.31, 1.0)] == [1, 1, 2, 2, 3, 3]
