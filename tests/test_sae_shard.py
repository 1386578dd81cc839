"""Atoms dealt to several processes train as in one."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import together
from torch import Tensor

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.sae import Control, FoldedSAE, Objective, Shard, ThresholdSAE, eager_step, parameter_groups

WIDTH, ATOMS = 12, 41  # a prime: no shard is like the next


def rows(count: int = 512) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, WIDTH, generator=generator).relu() @ torch.randn(WIDTH, WIDTH, generator=generator) + 1


def make(x: Tensor, shard: Shard | None = None, encoder: str = "free") -> tuple[ThresholdSAE, Control]:
    geometry = AtomicInnerProduct.from_moments(Moments.from_rows(x.double()))
    sae = ThresholdSAE(WIDTH, ATOMS, geometry=geometry, encoder=encoder, seed=3, shard=shard)  # type: ignore[arg-type]
    control = Control(sae, Objective(target_l0=3.0, dead_after=200), rows=10_000)
    control.num_spare = 8  # fewer than fall silent, so that the choice matters
    return sae, control


def train(sae: ThresholdSAE, control: Control, x: Tensor, steps: int = 12) -> list[Tensor]:
    """A trainer's loop; some atoms begin out of reach, so that they fall silent and are revived."""
    with torch.no_grad():
        sae.threshold[torch.arange(sae.held.start, sae.held.stop) % 3 == 0] += 30
    sae, control = sae.double(), control.double()  # else Adam makes much of the rounding of gradients near zero
    optimizer = torch.optim.Adam(parameter_groups(sae, 5e-3))
    losses = []
    for step in range(steps):
        out = eager_step(sae, control, x[64 * (step % 8) :][:64].double())
        optimizer.zero_grad()
        out.loss.backward()  # type: ignore[no-untyped-call]
        control.update(sae.shard.add(out.stats))
        control.project_gradients_(sae)
        sae.clip_gradients_(0.3)
        optimizer.step()
        control.after_step_(sae)
        losses += [torch.stack([out.loss.detach(), out.parts["revival"].double()])]
    return losses


@pytest.mark.parametrize(("size", "encoder"), [(2, "tied"), (2, "free"), (3, "aligned")])
def test_shards_train_as_one(size: int, encoder: str) -> None:
    x = rows()
    alone = make(x, encoder=encoder)
    expected = train(*alone, x)
    assert any(loss[1] > 0 for loss in expected)  # revival took part

    def work(shard: Shard) -> tuple[list[Tensor], ThresholdSAE | None, Control, int]:
        sae, control = make(x, shard, encoder)
        return train(sae, control, x), sae.whole(), control, len(sae.decoder)

    results = together(size, work)
    assert sum(result[3] for result in results) == ATOMS
    for losses, _, control, _ in results:
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-12)
        for name in ("silent_rows", "rows_seen", "mean_l0", "near"):
            torch.testing.assert_close(getattr(control, name), getattr(alone[1], name), rtol=0, atol=0, msg=name)
    whole, *others = [result[1] for result in results]
    assert others == [None] * (size - 1)
    assert whole.shard == Shard()
    for name, value in alone[0].named_parameters():
        torch.testing.assert_close(dict(whole.named_parameters())[name], value.float(), rtol=1e-6, atol=1e-7, msg=name)


def test_shards_begin_as_parts_of_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoms.sae.model._CHUNK", 12)  # several draws
    x = rows()
    whole, _ = make(x)
    parts = [make(x, Shard(rank, 3))[0] for rank in range(3)]
    assert torch.equal(torch.cat([part.decoder for part in parts]), whole.decoder)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(ATOMS, WIDTH, generator=generator, dtype=torch.float64)  # in one go
    assert torch.equal(whole.decoder, torch.nn.functional.normalize(drawn, dim=1).float())


def test_gradients_are_clipped_by_the_norm_over_all_shards() -> None:
    x = rows()

    def clipped(sae: ThresholdSAE) -> dict[str, Tensor]:
        for name, value in sae.named_parameters():
            own = sae.held if name != "origin" else slice(None)
            value.grad = torch.linspace(1, 2, ATOMS if name != "origin" else WIDTH)[own].view(
                -1, *(1,) * (value.ndim - 1)
            ) * torch.ones_like(value)
        sae.clip_gradients_(1.0)
        return {name: value.grad for name, value in sae.named_parameters()}

    expected = clipped(make(x)[0])
    assert sum(grad.square().sum() for grad in expected.values()) == pytest.approx(1)
    parts = together(2, lambda shard: clipped(make(x, shard)[0]))
    for name, grad in expected.items():
        found = torch.cat([part[name] for part in parts]) if name != "origin" else parts[0][name]
        torch.testing.assert_close(found, grad)


@settings(max_examples=8, deadline=None)
@given(
    numbers=st.lists(
        st.lists(st.floats(0, 2.0**99, width=32) | st.sampled_from([0.0, 1.0]), min_size=5, max_size=5), min_size=1
    ),
    k=st.integers(1, 5),
    cut=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_kth_largest_is_found_wherever_it_is(numbers: list[list[float]], k: int, cut: int, dtype: Any) -> None:
    values = torch.tensor(numbers, dtype=dtype)
    expected = values.sort(dim=1, descending=True).values[:, k - 1 : k]
    assert torch.equal(Shard().kth_largest(values, k), expected)
    parts = values[:, :cut], values[:, cut:]
    for found in together(2, lambda shard: shard.kth_largest(parts[shard.rank], k)):
        assert torch.equal(found, expected)
    for found in together(2, lambda shard: shard.kth_largest(parts[shard.rank], 6)):
        assert not found.any()


@given(total=st.integers(1, 100), size=st.integers(1, 9))
def test_every_atom_is_held_once(total: int, size: int) -> None:
    held = [Shard(rank, size).atoms(total) for rank in range(size)]
    assert [atom for own in held for atom in range(own.start, own.stop)] == list(range(total))
    assert max(own.stop - own.start for own in held) - min(own.stop - own.start for own in held) <= 1


def test_a_shard_is_not_taken_for_the_whole() -> None:
    sae, _ = make(rows(), Shard(1, 2))
    for use in (lambda: sae.atoms, sae.fold, lambda: sae.save("somewhere"), lambda: FoldedSAE.from_sae(sae)):
        with pytest.raises(ValueError, match=r"shard 1 of 2: call whole"):
            use()


def test_every_process_needs_an_atom() -> None:
    with pytest.raises(AtomsError, match="atoms is 41, fewer than the 42 processes that share them: give more"):
        make(rows(), Shard(0, 42))


def test_alone_nothing_is_copied() -> None:
    sae, _ = make(rows())
    assert sae.whole() is sae
    copy.deepcopy(sae)
    assert Shard().add(sae.bias) is sae.bias
