"""Scores, the summary of a dictionary, its table and its figures."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from atoms.geometry import AtomicInnerProduct, Moments, coherence
from atoms.metrics import reconstruction_r2, sparsity_profile
from atoms.training import figures
from atoms.training.evaluation import final_scalars
from atoms.training.members import Member, member_configs
from atoms.training.scores import BIN_RANGE, NUM_BINS, MemberScores, PreActivationHistogram
from atoms.training.summary import Summary, draw, summarise, table

BASE = {
    "site": "s", "expansion": 3.0, "power": 0.5, "error_power": 0.5, "encoder": "aligned", "target_l0": 2.0,
    "lr": 2e-3, "clip": 1.0, "seed": 0,
}  # fmt: skip


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 8, generator=generator)
    return torch.randn(500, 8, generator=generator) @ mixing + 3


@pytest.fixture
def member(rows):
    geometry = AtomicInnerProduct.from_moments(Moments.from_rows(rows))
    return Member(member_configs(BASE, None, ["s"])["tsae"], geometry, rows=1000)


def scored(member, rows) -> MemberScores:
    scores = MemberScores(member.sae)
    for batch in rows.split(128):
        scores.update(member.sae, batch)
    return scores


class TestScores:
    """One pass over rows fills every score."""

    def test_are_those_of_the_dictionary_s_own_codes(self, member, rows):
        values = scored(member, rows).compute()
        with torch.no_grad():
            codes = member.sae.encode(rows)
            expected = {
                **reconstruction_r2(rows, member.sae.decode(codes), member.sae.geometry),
                **sparsity_profile(codes, rows),
            }
        assert values.keys() == expected.keys()
        for name, value in values.items():
            assert float(value) == pytest.approx(float(expected[name]), rel=1e-6), name

    def test_empty_batches_change_nothing(self, member, rows):
        scores = scored(member, rows)
        before = scores.compute()
        scores.update(member.sae, rows[:0])
        assert all(torch.equal(before[name], value) for name, value in scores.compute().items())

    def test_reset_forgets(self, member, rows):
        scores = scored(member, rows[:300])
        scores.reset()
        for batch in rows[300:].split(128):
            scores.update(member.sae, batch)
        expected = scored(member, rows[300:])
        assert torch.equal(*(torch.stack(list(found.compute().values())) for found in (scores, expected)))
        assert torch.equal(scores.pre.compute(), expected.pre.compute())

    def test_histogram_counts_everything_and_puts_the_far_into_the_outermost_bins(self):
        histogram = PreActivationHistogram()
        edges = torch.linspace(*BIN_RANGE, NUM_BINS + 1)
        centres = (edges[:-1] + edges[1:]) / 2
        histogram.update(torch.cat([centres, centres[7].repeat(4), torch.tensor([-1e4, 1e4, 1e4])]).reshape(1, -1))
        expected = torch.ones(NUM_BINS, dtype=torch.int64)
        expected[7] += 4
        expected[0] += 1
        expected[-1] += 2
        assert torch.equal(histogram.compute(), expected)


@pytest.fixture
def summary(member, rows) -> Summary:
    member.control.rows_seen.fill_(777)
    truth = member.sae.atoms[:4].double()
    return summarise("tsae", member, scored(member, rows[:200]), scored(member, rows[200:400]), 300, truth)


class TestSummary:
    """What is said of a dictionary."""

    def test_numbers(self, summary, member, rows):
        with torch.no_grad():
            train, held_out = (reconstruction_r2(part, member.sae(part))["r2"] for part in (rows[200:400], rows[:200]))
        assert summary.memorisation_gap == pytest.approx(float(train - held_out), abs=1e-6)
        assert summary.rows == 200
        assert summary.rows_seen == 777
        assert summary.rows_per_atom == 300 / 24
        assert summary.aip.maximum == coherence(member.sae.atoms, aip=member.sae.geometry).maximum
        assert summary.euclid.maximum == coherence(member.sae.atoms, aip=None).maximum
        assert summary.recovered == 1  # the planted atoms are four of its own
        assert summary.mcc == pytest.approx(1)

    def test_scalars_leave_out_what_was_not_measured(self, member, rows):
        bare = summarise("tsae", member, scored(member, rows), None, 300, None).scalars()
        assert not {"memorisation_gap", "planted_recovered", "planted_mcc"} & bare.keys()
        assert {"r2", "q_star_pairs", "q_star_pairs_null", "max_cos_aip"} <= bare.keys()
        assert all(isinstance(value, float) for value in bare.values())

    def test_several_members_are_named(self, summary):
        assert "final/r2" in final_scalars([summary], "final")
        assert "final/tsae/r2" in final_scalars([summary, summary], "final")

    @pytest.mark.parametrize(("gap", "warned"), [(0.051, True), (0.049, False), (-0.2, False)])
    def test_table_warns_of_memorisation(self, summary, gap, warned):
        object.__setattr__(summary, "memorisation_gap", gap)
        console = Console(width=100, file=io.StringIO())
        console.print(table([summary], "held-out"))
        text = console.file.getvalue()
        assert ("MEMORISED" in text) == warned
        assert f"{gap:+.3f}" in text

    def test_figures_of_every_member(self, summary):
        drawn = draw(summary)
        assert set(drawn) == {"pre_activations", "firing_rates", "coherence", "atoms_per_row"}
        assert all(isinstance(figure, Figure) for figure in drawn.values())


class TestFigures:
    """They show the numbers they are given, also where there is little to show."""

    def test_share_of_rows_by_number_of_atoms(self):
        axes = figures.atoms_per_row(torch.tensor([2, 5, 3, 0, 0]), 1.5).axes[0]
        (steps,) = axes.patches
        values, edges, _ = steps.get_data()
        assert values.tolist() == [0.2, 0.5, 0.3]
        assert edges.tolist() == [-0.5, 0.5, 1.5, 2.5]
        assert [line.get_xdata()[0] for line in axes.lines] == [1.1, 1.5]

    def test_atoms_that_never_fire_are_counted_and_not_drawn(self):
        axes = figures.firing_rates(torch.tensor([0.0, 0.5, 0.125, 0.0]), 0.25).axes[0]
        assert axes.lines[0].get_ydata().tolist() == [0.5, 0.125]
        assert axes.get_title(loc="right") == "2 never fire"

    def test_density_of_cosines_integrates_to_one(self):
        generator = torch.Generator().manual_seed(0)
        atoms = torch.randn(40, 6, generator=generator)
        found = coherence(atoms, aip=None)
        axes = figures.coherence(found, found, 6).axes[0]
        values, edges, _ = axes.patches[0].get_data()
        assert float(np.nansum(values * np.diff(edges))) == pytest.approx(1)

    def test_dead_dictionary(self, tmp_path):
        edges = np.linspace(*BIN_RANGE, NUM_BINS + 1)
        drawn = [
            figures.firing_rates(torch.zeros(4), 0.1),
            figures.atoms_per_row(torch.tensor([10, 0, 0, 0, 0]), 2),
            figures.pre_activations(edges, np.zeros(NUM_BINS, np.int64), torch.zeros(4)),
        ]
        for number, figure in enumerate(drawn):
            figure.savefig(tmp_path / f"{number}.png")
