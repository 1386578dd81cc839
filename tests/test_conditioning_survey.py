"""A survey is what the functions say of every matrix."""

import json
import math

import pytest
import torch
from torch import nn

from atoms.conditioning import Condition, Weight, bounds, measures, shape_null, spectrum, survey, weights_of
from atoms.conditioning.selection import Budget, candidates_of, select
from atoms.conditioning.survey import MAX_DIM, SNR, cost
from atoms.conditioning.weights import digest, named_weight
from atoms.errors import AtomsError

ENTROPIC = {"log_volume", "entropy_loss", "spectral_entropy", "effective_rank", "channel_share"}


def given(values: torch.Tensor, name: str = "layers.3.mlp.up.weight") -> Weight:
    return named_weight(name, tuple(values.shape), lambda: values)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def strict(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def test_what_is_said_is_what_the_functions_say():
    values = normal(0, 20, 12)
    (found,) = survey([given(values)])
    sigma, null = spectrum(values).values, shape_null(20, 12)
    kappa = measures.condition_number(sigma)
    assert found == Condition(
        tensor="layers.3.mlp.up.weight",
        expert=None,
        kind="linear",
        role="mlp.up",
        layer=3,
        rows=20,
        columns=12,
        parameters=240,
        exact=True,
        kappa=kappa,
        kappa_null=null.kappa,
        relative=kappa / null.kappa,
        norm=pytest.approx(values.norm().item()),
        rank=12,
        log_volume=measures.log_volume(sigma),
        entropy_loss=measures.entropy_loss(sigma),
        entropy_loss_null=null.entropy_loss,
        loss_bound=measures.entropy_loss_bound(kappa),
        spectral_entropy=measures.spectral_entropy(sigma),
        effective_rank=measures.effective_rank(sigma),
        effective_rank_null=null.effective_rank,
        channel_share=measures.channel_share(sigma, SNR),
        digest=digest(values),
    )
    assert found.name == found.tensor
    assert found.loss_bound <= found.entropy_loss


def test_the_signal_to_noise_ratio_is_the_callers():
    values = normal(1, 6, 6)
    shares = [survey([given(values)], snr=snr)[0].channel_share for snr in (1, 100, 1e6)]
    assert shares == [measures.channel_share(spectrum(values).values, snr) for snr in (1, 100, 1e6)]


def test_every_matrix_of_a_module_in_order():
    model = nn.Sequential(nn.Embedding(30, 6), nn.Conv1d(6, 8, 3), nn.LayerNorm(8), nn.Linear(8, 5))
    found = survey(weights_of(model))
    assert [each.tensor for each in found] == ["0.weight", "1.weight", "3.weight"]
    assert [each.kind for each in found] == ["embedding", "conv", "linear"]
    assert [(each.rows, each.columns, each.parameters) for each in found] == [(30, 6, 180), (8, 18, 144), (5, 8, 40)]
    assert found[1].kappa == spectrum(model[1].weight.detach().flatten(1)).condition


def test_rows_are_outputs_where_inputs_are_stored_as_rows():
    values = normal(2, 4, 12)
    (found,) = survey([Weight("c_attn.weight", "linear", (4, 12), lambda: values, transposed=True)])
    assert (found.rows, found.columns) == (12, 4)
    assert found.kappa == pytest.approx(spectrum(values).condition)


def test_experts_are_measured_each():
    stack = normal(3, 4, 6, 10)
    found = survey([given(stack, "model.layers.1.mlp.experts.down_proj")])
    assert [each.name for each in found] == [f"model.layers.1.mlp.experts.down_proj[{expert}]" for expert in range(4)]
    assert [each.expert for each in found] == [0, 1, 2, 3]
    assert {(each.tensor, each.kind, each.parameters) for each in found} == {
        ("model.layers.1.mlp.experts.down_proj", "experts", 60)
    }
    assert {each.digest for each in found} == {digest(stack)}
    assert [each.kappa for each in found] == [spectrum(matrix).condition for matrix in stack]


def test_one_expert_is_not_numbered():
    (found,) = survey([given(normal(4, 1, 6, 10), "mlp.experts.up_proj")])
    assert (found.expert, found.name, found.rows, found.columns) == (None, "mlp.experts.up_proj", 6, 10)


def test_beyond_max_dim_there_are_bounds():
    values, small = normal(5, 40, 30), normal(6, 50, 8)
    found, exact = survey([given(values), given(small)], max_dim=29)
    assert not found.exact
    assert exact.exact
    assert found.kappa == bounds(values).condition <= spectrum(values).condition * (1 + 1e-9)
    assert found.relative == found.kappa / shape_null(40, 30).kappa
    assert found.loss_bound == measures.entropy_loss_bound(found.kappa)
    assert found.norm == pytest.approx(values.norm().item())
    assert found.rank is None
    assert {name for name, value in vars(found).items() if isinstance(value, float) and math.isnan(value)} == ENTROPIC
    record = found.to_json()
    assert {name for name, value in record.items() if value is None} == ENTROPIC | {"rank", "expert"}
    assert survey([given(values)], max_dim=30)[0].exact
    assert survey([given(values)], max_dim=None)[0].exact
    assert survey([given(values)])[0].exact


def test_json_is_strict_and_keeps_what_is_finite():
    singular = normal(7, 8, 5)
    singular[:, 0] = singular[:, 1]
    found = survey([given(normal(8, 9, 4)), given(singular), given(normal(9, 7, 7))], max_dim=5)
    records = json.loads(strict([each.to_json() for each in found]))
    for record, each in zip(records, found, strict=True):
        assert record.keys() == vars(each).keys()
        for name, value in vars(each).items():
            if not isinstance(value, float) or math.isfinite(value):
                assert record[name] == value
    infinite = records[1]
    assert {name for name, value in infinite.items() if value == "inf"} == {
        "kappa", "relative", "entropy_loss", "loss_bound",
    }  # fmt: skip
    assert infinite["log_volume"] == "-inf"
    assert infinite["rank"] == 4
    assert found[1].kappa == math.inf
    assert 0 < found[1].effective_rank < 5


@pytest.mark.parametrize("max_dim", [MAX_DIM, 2])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.tensor([[1.0, math.nan], [1, 1], [0, 1]]), "layers.0.fc.weight: 1 of 6 weights are not finite"),
        (torch.full((3, 4), math.inf), "layers.0.fc.weight: 12 of 12 weights are not finite"),
        (torch.empty(0, 4), "layers.0.fc.weight: a matrix of shape"),
    ],
)
def test_a_matrix_without_a_condition_is_named(values, said, max_dim):
    with pytest.raises(AtomsError, match=f"^{said}"):
        survey([given(normal(10, 3, 4)), given(values, "layers.0.fc.weight")], max_dim=max_dim)


def test_a_matrix_of_zeros_ends_no_survey_and_is_never_chosen():
    found = survey([given(normal(10, 3, 4)), given(torch.zeros(3, 4), "layers.0.fc.weight")])
    assert (found[1].kappa, found[1].norm, found[1].exact) == (math.inf, 0, False)
    assert math.isnan(found[1].effective_rank)
    assert select(candidates_of(found), Budget(count=2)).unknown == ("layers.0.fc.weight",)


def test_an_expert_without_a_condition_is_named():
    stack = normal(11, 3, 4, 5)
    stack[2, 0, 0] = math.nan
    with pytest.raises(AtomsError, match=r"^layers.0.experts.up_proj\[2\]: 1 of 20 weights are not finite"):
        survey([given(stack, "layers.0.experts.up_proj")])


def test_one_tensor_after_the_other():
    events: list[str] = []

    def read(name: str) -> torch.Tensor:
        events.append(f"read {name}")
        return normal(12, 4, 3)

    weights = (named_weight(name, (4, 3), lambda name=name: read(name)) for name in "ab")
    found = survey(weights, done=lambda weight: events.append(f"done {weight.name}"))
    assert events == ["read a", "done a", "read b", "done b"]
    assert len(found) == 2


def test_weights_stay_as_they_are():
    values = {dtype: normal(13, 9, 6).to(dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)}
    before = {dtype: each.clone() for dtype, each in values.items()}
    for max_dim in (2, None):
        survey([given(each) for each in values.values()], max_dim=max_dim)
    assert all(torch.equal(values[dtype], before[dtype]) for dtype in values)


def test_cost_grows_with_the_matrices_and_knows_the_limit():
    weights = [given(torch.empty(shape), "layers.0.experts.up_proj") for shape in [(64, 64), (256, 64), (8, 64, 64)]]
    one, wide, eight = cost(weights)
    assert eight == 8 * one
    assert one < wide < 4 * one
    assert cost([given(torch.empty(64, 256))]) == [wide]
    assert cost(weights, 64) == cost(weights, None) == [one, wide, eight]
    limited = cost(weights, 63)
    assert limited[1] == 4 * limited[0]
    assert cost([given(torch.empty(2000, 1500).expand(2000, 1500))], 100)[0] < cost([given(torch.empty(2000, 1500))])[0]


def test_zeros_are_of_rank_0_where_a_bound_has_none():
    found = survey([given(torch.zeros(3, 4)), given(normal(14, 3, 4))], max_dim=2)
    assert [each.rank for each in found] == [0, None]
    assert [each.exact for each in found] == [False, False]
