"""The activations beside the threshold: what each of them keeps, and how each comes to its target."""

import copy
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from test_eager_step import planted, train
from threads import together
from torch import Tensor

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.sae import Activation, Control, Objective, Shard, ThresholdSAE, eager_step, parameter_groups
from atoms.sae.activation import activate, batch_cutoff

ALL = get_args(Activation)
CONTROLS = ALL[1:]


def make(
    x: Tensor,
    activation: str,
    *,
    atoms: int = 64,
    rows: int = 256 * 150,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> tuple[ThresholdSAE, Control]:
    geometry = AtomicInnerProduct.from_moments(Moments.from_rows(x.double()))
    objective = Objective(**{"target_l0": 4.0, **options})
    k = round(objective.target_l0) if activation == "topk" else None
    sae = ThresholdSAE(x.shape[1], atoms, geometry=geometry, activation=activation, k=k, shard=shard)  # type: ignore[arg-type]
    return sae, Control(sae, objective, rows=rows, group=group)


def l0(codes: Tensor) -> float:
    return (codes > 0).sum(1).double().mean().item()


NUMBERS = st.lists(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([-1.0, 0.0, 1.0, 2.0]), min_size=6, max_size=6),
    min_size=1,
    max_size=5,
)
DTYPES = st.sampled_from([torch.float32, torch.float64])


class TestWhatIsKept:
    """The function itself, against sorting."""

    def test_relu_is_a_threshold_of_zero(self):
        pre = torch.randn(50, 20)
        assert torch.equal(activate(pre, torch.zeros(20)), pre.relu())

    @settings(max_examples=25, deadline=None)
    @given(numbers=NUMBERS, k=st.integers(1, 6), cut=st.integers(0, 6), dtype=DTYPES)
    def test_topk_keeps_the_k_largest_of_a_row_on_one_process_and_on_two(self, numbers, k, cut, dtype):
        pre = torch.tensor(numbers, dtype=dtype)
        parts = pre[:, :cut], pre[:, cut:]
        codes = activate(pre, torch.zeros(6, dtype=dtype), k)
        shared = together(2, lambda shard: activate(parts[shard.rank], torch.zeros((), dtype=dtype), k, shard))
        expected = pre.relu().sort(dim=1, descending=True).values
        expected[:, k:] = 0
        for found in (codes, torch.cat(shared, dim=1)):
            assert torch.equal(found.sort(dim=1, descending=True).values, expected)
            assert torch.equal(found[found != 0], pre[found != 0])

    @settings(max_examples=25, deadline=None)
    @given(numbers=NUMBERS, share=st.floats(0.2, 6), row=st.integers(0, 5), dtype=DTYPES)
    def test_cutoff_is_the_kth_largest_of_the_whole_batch_however_it_is_dealt(self, numbers, share, row, dtype):
        pre = torch.tensor(numbers, dtype=dtype)
        k = max(1, round(share * len(pre)))
        largest = pre.flatten().topk(min(k, pre.numel())).values[-1]
        expected = largest.clamp_min(0) if k <= pre.numel() else largest.new_zeros(())
        assert torch.equal(batch_cutoff(pre, share, len(pre)), expected)
        by_rows, by_atoms = (pre[:row], pre[row:]), (pre[:, :row], pre[:, row:])
        for found in together(2, lambda it: batch_cutoff(by_rows[it.rank], share, len(by_rows[it.rank]), it.group)):
            assert torch.equal(found, expected)
        for found in together(2, lambda it: batch_cutoff(by_atoms[it.rank], share, len(pre) * (1 - it.rank), it.group)):
            assert torch.equal(found, expected)

    def test_settings_that_do_not_fit(self):
        x, _ = planted(rows=64)
        geometry = AtomicInnerProduct.from_moments(Moments.from_rows(x.double()))
        with pytest.raises(AtomsError, match="activation is 'gelu': use one of threshold, relu, topk, batch_topk"):
            ThresholdSAE(16, 8, geometry=geometry, activation="gelu")  # type: ignore[arg-type]
        for activation, k in (("topk", None), ("topk", 9), ("topk", 0), ("relu", 3)):
            with pytest.raises(AtomsError, match=f"k is {k} and activation '{activation}': topk wants k from 1 to 8"):
                ThresholdSAE(16, 8, geometry=geometry, activation=activation, k=k)  # type: ignore[arg-type]


class TestTraining:
    """Each comes to its target, whatever the unit and however rows and atoms are dealt."""

    @pytest.mark.parametrize("activation", CONTROLS)
    def test_l0_reaches_its_target(self, activation):
        x, _ = planted(active=4)
        sae, control = make(x, activation)
        outputs = train(sae, control, x, steps=150)
        late = torch.stack([out.parts["l0"] for out in outputs[-50:]])
        assert late.mean().item() == pytest.approx(4.0, rel=0.03)
        assert l0(sae.encode(x)) == pytest.approx(4.0, rel=0.05)
        if activation != "relu":  # by construction, in every batch
            assert late.min() == 4.0
            assert late.max() < 4.02  # a row drawn twice may tie at the cutoff
        if activation == "topk":
            assert ((sae.encode(x) > 0).sum(1) == 4).all()
        assert outputs[-1].parts["reconstruction"] < (0.4 if activation == "relu" else 0.2)

    def test_a_penalty_takes_what_it_says_off_a_code_that_stands_alone(self):
        # For one atom with enc = dec and an error in z, the best code is the projection less the penalty.
        x, _ = planted(rows=512)
        sae, control = make(x, "relu", atoms=1, target_l0=0.5, error_power=0.5)
        control.penalty.fill_(0.3)
        control.mean_l0.fill_(0.5)
        z = sae.standardise(x)
        codes = (z @ sae.decoder.T).detach().requires_grad_()
        loss = control.energy(z - codes @ sae.decoder.detach()) + control.shrinkage(sae, codes)
        (slope,) = torch.autograd.grad(loss, codes)
        torch.testing.assert_close(slope * len(x) * 16 / 2, torch.full_like(slope, 0.3), rtol=1e-3, atol=1e-3)

    def test_the_inference_threshold_is_the_mean_of_the_cutoffs(self):
        x, _ = planted()
        sae, control = make(x, "batch_topk")
        cutoffs = []
        for start in range(0, 2560, 256):
            out = eager_step(sae, control, x[start : start + 256])
            control.update(out.stats)
            with torch.no_grad():
                sae.bias.add_(0.1)  # or they would be all alike
            control.after_step_(sae)
            cutoffs.append(control.batch_cutoff.item())
        assert len(set(cutoffs)) == 10
        torch.testing.assert_close(sae.threshold, torch.full((64,), sum(cutoffs) / 10))

    @pytest.mark.parametrize("activation", CONTROLS)
    @pytest.mark.parametrize("exponent", [-20, 9])
    def test_a_power_of_two_trains_bit_identically(self, activation, exponent):
        x, _ = planted()
        pairs = [(make(rows, activation, dead_after=500), rows) for rows in (x, x * 2.0**exponent)]
        losses = [[out.loss.item() for out in train(*pair, rows, steps=8)] for pair, rows in pairs]
        assert losses[0] == losses[1]
        (one, _), _ = pairs[0]
        (other, _), _ = pairs[1]
        for (name, first), (_, second) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(first, second), name

    @pytest.mark.parametrize("activation", CONTROLS)
    def test_silent_atoms_come_back(self, activation):
        x, _ = planted()
        sae, control = make(x, activation, rows=128 * 60, target_l0=2.0, dead_after=500)
        with torch.no_grad():
            sae.bias[:20] -= 30
        train(sae, control, x, steps=4, batch=128)
        assert (control.silent_rows[:20] == 512).all()
        train(sae, control, x, steps=60, batch=128, lr=1e-2)
        assert (control.silent_rows[:20] < 64 * 128).float().mean() > 0.9  # have fired since

    @pytest.mark.parametrize("deal", ["rows", "atoms"])
    @pytest.mark.parametrize("activation", CONTROLS)
    def test_two_processes_train_as_one(self, activation, deal):
        x, _ = planted(rows=1024)

        def work(it: Shard) -> tuple[list[Tensor], dict[str, Tensor] | None, Control]:
            shard = it if deal == "atoms" else Shard()
            sae, control = make(x, activation, atoms=41, shard=shard, group=it.group, dead_after=200)
            with torch.no_grad():
                sae.bias[torch.arange(sae.held.start, sae.held.stop) % 3 == 0] -= 30  # silent, to be revived
            sae, control = sae.double(), control.double()
            optimizer = torch.optim.Adam(parameter_groups(sae, 5e-3))
            losses = []
            for step in range(12):
                rows = x[64 * step :][:64].double()
                if deal == "rows":
                    rows = rows.chunk(it.size)[it.rank]
                out = eager_step(sae, control, rows)
                optimizer.zero_grad()
                out.loss.backward()
                if deal == "rows":
                    for parameter in sae.parameters():
                        if parameter.grad is not None:
                            parameter.grad = it.add(parameter.grad) / it.size
                loss = out.loss.detach()
                losses.append(it.add(loss) / it.size if deal == "rows" else loss)
                control.update(it.add(out.stats))
                control.project_gradients_(sae)
                optimizer.step()
                control.after_step_(sae)
            whole = sae.whole()
            return losses, None if whole is None else dict(whole.named_parameters()), control

        ((expected, parameters, alone),) = together(1, work)
        results = together(2, work)
        assert parameters is not None
        assert (alone.silent_rows >= 200).any()
        for losses, found, control in results:
            torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-12)
            for name, value in alone.named_buffers():
                torch.testing.assert_close(dict(control.named_buffers())[name], value, rtol=1e-6, atol=1e-9, msg=name)
            for name, value in (found or {}).items():
                torch.testing.assert_close(value.double(), parameters[name], rtol=1e-5, atol=1e-6, msg=name)

    def test_only_a_threshold_is_learnt(self):
        x, _ = planted(rows=64)
        for activation in ALL:
            sae, _ = make(x, activation)
            named = {id(p) for group in parameter_groups(sae) for p in group["params"]}
            assert (id(sae.threshold) in named) == sae.threshold.requires_grad == (activation == "threshold")

    def test_the_threshold_keeps_no_state_of_the_others(self):
        x, _ = planted(rows=64)
        states = {activation: make(x, activation)[1].state_dict().keys() for activation in ALL}
        common = {"silent_rows", "rows_seen", "step_rows", "mean_l0", "residual", "near"}
        assert states["threshold"] == states["topk"] == common
        assert states["relu"] == common | {"penalty"}
        assert states["batch_topk"] == common | {"batch_cutoff"}

    @pytest.mark.parametrize("activation", CONTROLS)
    def test_autocast_trains(self, activation):
        x, _ = planted()
        sae, control = make(x, activation)
        full = eager_step(sae, control, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lowered = eager_step(copy.deepcopy(sae), control, x)
        assert lowered.loss.dtype == torch.float32
        assert lowered.loss.item() == pytest.approx(full.loss.item(), rel=0.05)
