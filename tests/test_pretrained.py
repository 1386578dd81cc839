"""Files of six libraries read, against dense references of their published forward passes."""

import json
import pickle
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import sae_files
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_files import ATOMS, WIDTH, K, Written, rows
from torch import Tensor

from atoms.errors import AtomsError
from atoms.sae import SparseCodes
from atoms.units import PretrainedUnits
from atoms.units.pretrained import encoder as encoder_module
from atoms.units.pretrained.encoder import Encoder
from atoms.units.pretrained.places import site_of

# torch says once a process that the compressed rows of `Unit.decode` are new
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")

GEMMA = "models--google--gemma-scope-2b-pt-{}/snapshots/abc/layer_20/width_16k/average_l0_71"
DICTIONARIES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
)  # fmt: skip


def check_codes(codes: SparseCodes, width: int) -> None:
    """The invariants of sparse codes: no zeros, and atoms that ascend within a row."""
    assert codes.width == width
    assert codes.values.dtype == torch.float32
    assert codes.indices.dtype == torch.int32
    assert (codes.values != 0).all()
    for start, stop in zip(codes.offsets[:-1].tolist(), codes.offsets[1:].tolist(), strict=True):
        assert (codes.indices[start:stop].diff() > 0).all()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-5)


def same(
    written: Written, unit: PretrainedUnits | None = None, x: Tensor | None = None, codes_too: bool = True
) -> None:
    """Codes and reconstruction are the reference's."""
    unit = unit or PretrainedUnits(str(written.path))
    x = rows() if x is None else x
    wanted, rebuilt = written.forward(x.double())
    assert 0 < (wanted != 0).double().mean() < 1
    found = unit.encode(x)
    check_codes(found, len(unit.atoms))
    if codes_too:
        close(found.to_dense()[:, : wanted.shape[1]], wanted)
    close(unit.decode(found), rebuilt)
    assert torch.equal(found.to_dense()[:, : wanted.shape[1]] != 0, wanted != 0)


def refused(path: Path | str, *words: str, **settings: str) -> None:
    """Reading it is one line that has these words."""
    with pytest.raises(AtomsError) as caught:
        PretrainedUnits(str(path), **settings)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# SAELens


@pytest.mark.parametrize("architecture", ["standard", "topk", "abstopk", "jumprelu", "gated"])
@pytest.mark.parametrize("shifted", [True, False])
def test_saelens(tmp_path, architecture, shifted):
    written = sae_files.saelens(tmp_path / "sae", architecture, apply_b_dec_to_input=shifted)
    unit = PretrainedUnits(str(written.path))
    same(written, unit)
    assert unit.site == unit.reads == "resid_post.5"
    assert unit.name.endswith("/sae")
    assert unit.target_l0 == (K if "topk" in architecture else None)
    assert torch.equal(unit.atoms, written.tensors["W_dec"])
    assert torch.equal(unit.centre, written.tensors["b_dec"])


def test_files_of_an_sae_name_it_as_its_directory_does(tmp_path):
    written = sae_files.saelens(tmp_path / "sae")
    same(written, PretrainedUnits(str(written.weights)))
    same(written, PretrainedUnits(str(written.path), format="saelens"))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [True, False])
def test_saelens_checkpoints_of_batchtopk_use_their_running_threshold(tmp_path, architecture, rescale):
    same(sae_files.saelens(tmp_path, architecture, rescale_acts_by_decoder_norm=rescale))


def test_saelens_checkpoints_of_jumprelu_may_hold_the_logarithm(tmp_path):
    written = sae_files.saelens(tmp_path, "jumprelu")
    threshold = written.tensors.pop("threshold")
    written.tensors["log_threshold"] = threshold.log()
    written.rewrite()
    same(written)


def test_negative_thresholds_let_no_negative_code_through(tmp_path):
    written = sae_files.saelens(tmp_path, "jumprelu")
    written.tensors["threshold"] -= 1.5
    assert (written.tensors["threshold"] < 0).any()
    written.rewrite()
    same(written)
    assert (PretrainedUnits(str(tmp_path)).encode(rows()).values > 0).all()


def test_an_infinite_threshold_is_an_atom_that_never_fires(tmp_path):
    written = sae_files.saelens(tmp_path, "jumprelu")
    written.tensors["threshold"][7] = torch.inf
    written.rewrite()
    same(written)


@pytest.mark.parametrize("topk", [True, False])
def test_topk_that_weighs_by_the_decoder_folds_its_length(tmp_path, topk):
    same(sae_files.saelens(tmp_path, "topk" if topk else "abstopk", rescale_acts_by_decoder_norm=True))


@pytest.mark.parametrize("how", ["expected_average_only_in", True])
def test_saelens_folds_the_factor_of_its_checkpoints(tmp_path, how):
    written = sae_files.saelens(tmp_path, "jumprelu", normalize_activations=how)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37, "has_whitening": False}))
    inner = written.forward
    written.forward = lambda x: (inner(0.37 * x)[0], inner(0.37 * x)[1] / 0.37)
    same(written, x=rows(scale=3))


def test_saelens_refuses_a_factor_that_is_not_there(tmp_path):
    sae_files.saelens(tmp_path, normalize_activations="expected_average_only_in")
    refused(tmp_path, "cfg.json", "expected_average_only_in", "activation_scaler.json", "fold")
    for bad in ("{}", '{"scaling_factor": -1}', '{"scaling_factor": null}', "[1]", "nonsense"):
        (tmp_path / "activation_scaler.json").write_text(bad)
        refused(tmp_path, "activation_scaler.json")


def test_saelens_folds_whitening(tmp_path):
    written = sae_files.saelens(tmp_path, "topk", normalize_activations="covariance_whitening")
    refused(tmp_path, "covariance_whitening", "after training")
    make = sae_files.Random(9)
    mean = make(WIDTH).double()
    matrix = torch.eye(WIDTH).double() + 0.1 * make(WIDTH, WIDTH).double()
    whitening = {"mean": mean, "matrix": matrix, "inverse_matrix": matrix.inverse().contiguous()}
    safetensors.torch.save_file(whitening, tmp_path / "activation_whitening.safetensors")
    inner = written.forward

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes, rebuilt = inner((x - mean) @ matrix)
        return codes, rebuilt @ matrix.inverse() + mean

    written.forward = forward
    same(written)


@pytest.mark.parametrize("architecture", ["topk", "gated"])
@pytest.mark.parametrize("shifted", [True, False])
def test_layer_norm_is_exact_row_by_row(tmp_path, architecture, shifted):
    written = sae_files.saelens(
        tmp_path, architecture, normalize_activations="layer_norm", apply_b_dec_to_input=shifted
    )
    inner = written.forward

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = x.mean(1, keepdim=True), (x - x.mean(1, keepdim=True)).std(1, keepdim=True)
        codes, rebuilt = inner((x - mean) / (std + 1e-5))
        return codes * std, rebuilt * std + mean

    written.forward = forward
    unit = PretrainedUnits(str(tmp_path))
    same(written, unit)
    # what the row gives away counts: its mean on the ones, its scale on the bias
    codes = unit.encode(rows()).to_dense()
    close(codes[:, ATOMS], rows().double().mean(1))
    close(codes[:, ATOMS + 1], rows().double().std(1))
    assert torch.equal(unit.atoms[ATOMS], torch.ones(WIDTH))
    assert torch.equal(unit.atoms[ATOMS + 1], written.tensors["b_dec"])
    assert not unit.centre.any()
    assert unit.target_l0 == (K + 2 if architecture == "topk" else None)


def test_rows_brought_to_one_length(tmp_path):
    written = sae_files.saelens(tmp_path, "jumprelu", normalize_activations="constant_norm_rescale")
    inner = written.forward

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        factor = WIDTH**0.5 / x.norm(dim=1, keepdim=True)
        codes, rebuilt = inner(x * factor)
        return codes / factor, rebuilt / factor

    written.forward = forward
    unit = PretrainedUnits(str(tmp_path))
    same(written, unit, rows(scale=50))
    assert len(unit.atoms) == ATOMS + 1
    assert not unit.decode(unit.encode(torch.zeros(3, WIDTH))).any()  # a row without length has no direction either


def test_without_a_bias_only_the_mean_is_an_atom_more(tmp_path):
    written = sae_files.saelens(tmp_path, normalize_activations="layer_norm")
    written.tensors["b_dec"].zero_()
    written.rewrite()
    assert len(PretrainedUnits(str(tmp_path)).atoms) == ATOMS + 1


@pytest.mark.parametrize("said", [True, False])
def test_rows_of_a_model_with_centred_weights(tmp_path, said):
    meta = {"hook_name": "blocks.5.hook_resid_pre", "sae_lens_version": "6.1.0"}
    meta |= {"model_from_pretrained_kwargs": {"center_writing_weights": True}} if said else {}
    written = sae_files.saelens(tmp_path, metadata=meta)
    inner = written.forward

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(1, keepdim=True)
        codes, rebuilt = inner(x - mean)
        return codes, rebuilt + mean

    written.forward = forward
    unit = PretrainedUnits(str(tmp_path), centred=not said)
    same(written, unit)
    assert unit.site == "resid_pre.5"
    # rows that are centred already, as the SAE knew them, cost no atom more than float32 leaves of their mean
    centred = rows() - rows().mean(1, keepdim=True)
    assert unit.encode(centred).to_dense()[:, ATOMS].abs().max() < 1e-6


def test_centring_concerns_the_residual_stream_alone(tmp_path):
    kwargs = {"center_writing_weights": True}
    meta = {"hook_name": "blocks.5.mlp.hook_post", "model_from_pretrained_kwargs": kwargs, "sae_lens_version": "6.1.0"}
    written = sae_files.saelens(tmp_path / "a", metadata=meta)
    unit = PretrainedUnits(str(written.path))
    same(written, unit)
    assert unit.site == "mlp_in.5"
    written = sae_files.saelens(tmp_path / "b", normalize_activations="constant_norm_rescale")
    with pytest.raises(AtomsError, match="centred and brought to one length"):
        PretrainedUnits(str(written.path), centred=True)


@pytest.mark.parametrize("spelling", ["activation_fn_str", "activation_fn"])
def test_saelens_settings_of_before_version_6(tmp_path, spelling):
    old = {"d_in": WIDTH, "d_sae": ATOMS, "hook_point": "blocks.3.hook_mlp_out", "hook_point_layer": 3}
    for name, extra in (
        ("relu", {spelling: "relu", "normalize_activations": False}),
        ("topk", {spelling: "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": None}),
    ):
        written = sae_files.saelens(tmp_path / name, "standard" if name == "relu" else "topk")
        assert written.settings is not None
        written.settings.write_text(json.dumps(old | extra))
        unit = PretrainedUnits(str(written.path))
        same(written, unit)
        assert unit.site == "mlp_out.3"
        assert unit.target_l0 == (K if name == "topk" else None)


def test_a_scale_of_codes_is_folded_where_the_settings_know_of_it(tmp_path):
    written = sae_files.saelens(tmp_path)
    same(written)
    written.rewrite(scaling_factor=torch.ones(ATOMS))
    same(written)
    scale = torch.linspace(0.5, 2, ATOMS)
    written.rewrite(scaling_factor=scale)
    refused(tmp_path, "sae_weights.safetensors", "scaling_factor", "finetuning_scaling_factor")
    written.spoil(finetuning_scaling_factor=True)
    bias, inner = written.tensors["b_dec"].double(), written.forward
    written.forward = lambda x: (inner(x)[0], inner(x)[0] * scale.double() @ written.tensors["W_dec"].double() + bias)
    same(written)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "skip_transcoder"}, ("skip_transcoder", "not read", "jumprelu")),
        ({"architecture": "temporal"}, ("temporal", "not read")),
        ({"architecture": ["standard"]}, ("not read",)),
        ({"activation_fn": "tanh-relu"}, ("tanh-relu", "not read")),
        ({"normalize_activations": "constant_scalar_rescale"}, ("constant_scalar_rescale",)),
        ({"normalize_activations": [1]}, ("cannot be undone",)),
        ({"metadata": "x"}, ("metadata", "not an object")),
        ({"d_sae": 41}, ("W_enc", "(12, 40)", "(12, 41)")),
        ({"d_in": "12"}, ("'12'",)),
    ],
)
def test_saelens_settings_that_are_refused(tmp_path, change, words):
    sae_files.saelens(tmp_path).spoil(**change)
    refused(tmp_path, str(tmp_path), *words)


@pytest.mark.parametrize("k", [0, -3, 2.5, ATOMS + 1, "5", True, None, 10**400])
def test_k_must_be_a_number_of_atoms(tmp_path, k):
    sae_files.saelens(tmp_path, "topk").spoil(k=k)
    refused(tmp_path, "cfg.json: k is")


def test_hooks_without_a_name_here_need_one(tmp_path):
    for number, changes in enumerate(
        (
            {"metadata": {"hook_name": "blocks.5.attn.hook_z"}, "reshape_activations": "hook_z"},
            {"metadata": {"hook_name": "blocks.5.hook_resid_mid"}},
            {"metadata": {"hook_name": "blocks.5.hook_resid_post", "hook_head_index": 3}},
            {"metadata": {}},
        )
    ):
        written = sae_files.saelens(tmp_path / str(number), **changes)
        refused(written.path, "which site", "give `site`")
        unit = PretrainedUnits(str(written.path), site="h.5.attn.c_proj:input")
        assert unit.site == unit.reads == "h.5.attn.c_proj:input"


@pytest.mark.parametrize(
    ("place", "site"),
    [
        ("blocks.5.hook_resid_post", "resid_post.5"),
        ("blocks.11.hook_resid_pre", "resid_pre.11"),
        ("blocks.0.hook_mlp_out", "mlp_out.0"),
        ("blocks.0.hook_attn_out", "attn_out.0"),
        ("blocks.7.mlp.hook_post", "mlp_in.7"),
        ("model.layers.5", "resid_post.5"),
        ("layers.5", "resid_post.5"),
        ("transformer.h.3", "resid_post.3"),
        ("gpt_neox.layers.3", "resid_post.3"),
        ("layers.3.mlp", "layers.3.mlp"),
        ("blocks.5.hook_resid_mid", None),
        ("blocks.5.attn.hook_z", None),
        ("blocks.5.ln2.hook_normalized", None),
        ("hook_embed", None),
        ("embed_tokens", None),
        ("x/blocks.5.hook_resid_post", None),
        ("", None),
        (None, None),
    ],
)
def test_places(place, site):
    assert site_of(place) == site


# sparsify


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "groupmax"},
        {"signed": True},
        {"transcode": True},
        {"num_latents": 0, "expansion_factor": 40 / 12},
    ],
)
def test_sparsify(tmp_path, changes):
    written = sae_files.sparsify(tmp_path / "run" / "layers.5", **changes)
    unit = PretrainedUnits(str(written.path))
    same(written, unit)
    assert unit.site == "resid_post.5"
    assert unit.reads == ("layers.5:input" if changes.get("transcode") else "resid_post.5")
    assert unit.target_l0 == K


def test_sparsify_reads_a_square_encoder_the_right_way_round(tmp_path):
    """With as many atoms as dimensions, no shape tells the transpose."""
    written = sae_files.sparsify(tmp_path / "h.2")
    square = {name: value[:WIDTH].clone() for name, value in written.tensors.items()}
    written.spoil(num_latents=WIDTH, k=3)
    safetensors.torch.save_file(square, written.weights)
    w = {name: value.double() for name, value in square.items()}

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = torch.einsum("bh,ah->ba", x - w["b_dec"], w["encoder.weight"]) + w["encoder.bias"]
        codes = sae_files.top(pre.relu(), 3)
        return codes, torch.einsum("ba,ah->bh", codes, w["W_dec"]) + w["b_dec"]

    written.forward = forward
    same(written)


def test_sparsify_runs_of_several_seeds_and_sites(tmp_path):
    for hook in ("layers.5", "layers.11.mlp"):
        for seed in (0, 1):
            sae_files.sparsify(tmp_path / hook / f"seed{seed}")
    assert PretrainedUnits(str(tmp_path / "layers.5" / "seed1")).site == "resid_post.5"
    assert PretrainedUnits(str(tmp_path / "layers.11.mlp" / "seed0")).site == "layers.11.mlp"
    refused(tmp_path, "4 SAEs", "layers.5/seed0", "name one")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"skip_connection": True}, ("skip connection",)),
        ({"activation": "batch_topk"}, ("batch_topk", "topk and groupmax")),
        ({"activation": "groupmax", "k": 7}, ("40 atoms", "7 equal groups")),
        ({"d_in": 13}, ("encoder.weight",)),
        ({"d_in": None}, ("d_in is None",)),
        ({"k": 0}, ("k is 0",)),
    ],
)
def test_sparsify_that_is_refused(tmp_path, changes, words):
    sae_files.sparsify(tmp_path / "layers.5").spoil(**changes)
    refused(tmp_path / "layers.5", *words)


def test_sparsify_skip_weights_are_refused_whatever_the_settings_say(tmp_path):
    sae_files.sparsify(tmp_path / "layers.5").rewrite(W_skip=torch.zeros(WIDTH, WIDTH))
    refused(tmp_path / "layers.5", "W_skip")


# dictionary_learning


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_dictionary_learning(tmp_path, kind):
    written = sae_files.dictionary_learning(tmp_path / "trainer_0", kind)
    unit = PretrainedUnits(str(written.path))
    same(written, unit)
    assert unit.site == "resid_post.8"
    assert unit.target_l0 == (K if kind == "AutoEncoderTopK" else None)
    (written.path / "checkpoints").mkdir()
    (written.path / "ae.pt").rename(written.path / "checkpoints" / "ae_5000.pt")
    same(written, PretrainedUnits(str(written.path / "checkpoints" / "ae_5000.pt")))


def test_batchtopk_is_read_with_its_scalar_threshold_and_not_as_relu(tmp_path):
    written = sae_files.dictionary_learning(tmp_path, "BatchTopKSAE")
    codes = PretrainedUnits(str(tmp_path)).encode(rows())
    relu = sae_files.dictionary_learning(tmp_path / "relu", "AutoEncoder")
    assert codes.values.min() > 0.8
    assert (relu.forward(rows().double())[0] > 0).double().mean() > len(codes.values) / (64 * ATOMS)
    written.tensors["threshold"] = torch.tensor(-1.0)
    torch.save(written.tensors, tmp_path / "ae.pt")
    refused(tmp_path, "ae.pt", "threshold is -1", "later checkpoint")


@pytest.mark.parametrize("kind", DICTIONARIES)
@pytest.mark.parametrize("factor", [None, 4.0])
def test_what_a_run_that_died_left_is_read(tmp_path, kind, factor):
    written = sae_files.dictionary_learning(tmp_path, kind)
    blob = {"step": 100, "ae": written.tensors, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    blob |= {"config": {"k": K}, "norm_factor": factor} if factor else {"config": {}}
    torch.save(blob, tmp_path / "ae.pt")
    inner = written.forward
    if factor:  # trained on rows divided by the factor; the library multiplies biases, so that codes grow with the rows
        written.forward = lambda x: tuple(factor * part for part in inner(x / factor))  # type: ignore[return-value]
    same(written, x=rows(scale=factor or 1))


def test_dictionary_learning_without_settings(tmp_path):
    for kind in DICTIONARIES:
        written = sae_files.dictionary_learning(tmp_path / kind, kind)
        (written.path / "config.json").unlink()
        if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
            refused(written.path, "AutoEncoderTopK or BatchTopKSAE", "config.json")
        else:
            refused(written.path, "give `site`")
            same(written, PretrainedUnits(str(written.path), site="resid_post.8"))


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("trainer", {"dict_class": "IdentityDict"}, ("IdentityDict", "not read")),
        ("trainer", {"dict_class": ["x"]}, ("not read",)),
        ("trainer", {"k": 6}, ("k is 5", "6")),
        ("trainer", {"activation_dim": 99}, ("encoder.weight", "99")),
        ("trainer", {"submodule_name": None}, ("layer 8", "give `site`")),
        ("buffer", {"io": "in_and_out"}, ("transcoder",)),
        ("buffer", {"io": "in"}, ("give `site`",)),
    ],
)
def test_dictionary_learning_that_is_refused(tmp_path, part, change, words):
    written = sae_files.dictionary_learning(tmp_path, "AutoEncoderTopK")
    assert written.settings is not None
    config = json.loads(written.settings.read_text())
    config[part] |= change
    written.settings.write_text(json.dumps(config))
    refused(tmp_path, *words)


class Bomb:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("open('burnt', 'w').write('x')",)


@pytest.mark.parametrize("how", ["pickle", "torch", "nested"])
def test_pickles_that_run_code_are_refused_unexecuted(tmp_path, how):
    written = sae_files.dictionary_learning(tmp_path, "AutoEncoder")
    if how == "pickle":
        written.weights.write_bytes(pickle.dumps(Bomb()))
    elif how == "torch":
        torch.save(Bomb(), written.weights)
    else:
        torch.save({**written.tensors, "extra": Bomb()}, written.weights)
    refused(tmp_path, "ae.pt", "state dict alone")
    assert not Path("burnt").exists()
    assert not (tmp_path / "burnt").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle", pickle.dumps({"a": 1}), pickle.dumps([1])])
def test_torch_files_that_are_none(tmp_path, content):
    sae_files.dictionary_learning(tmp_path, "AutoEncoder").weights.write_bytes(content)
    refused(tmp_path, "ae.pt")


def test_tensors_that_claim_more_than_they_hold(tmp_path):
    written = sae_files.dictionary_learning(tmp_path, "AutoEncoder")
    written.tensors["encoder.weight"] = torch.zeros(1).expand(ATOMS, WIDTH)
    torch.save(written.tensors, written.weights)
    refused(tmp_path, "encoder.weight", "fewer numbers")


# Gemma Scope


@pytest.mark.parametrize("names", ["upper", "lower"])
@pytest.mark.parametrize(
    ("kind", "site"),
    [("res", "resid_post.20"), ("mlp", "mlp_out.20"), ("att", "layers.20.self_attn.o_proj:input")],
)
def test_gemma_scope(tmp_path, names, kind, site):
    written = sae_files.gemma_scope(tmp_path / GEMMA.format(kind), names=names, scaling_factor=torch.ones(ATOMS))
    unit = PretrainedUnits(str(written.path))
    same(written, unit)
    assert unit.site == site
    assert unit.name == "width_16k/average_l0_71"
    same(written, PretrainedUnits(str(written.path / "params.npz")))


def test_thresholds_are_strict(tmp_path):
    written = sae_files.gemma_scope(tmp_path / GEMMA.format("res"))
    arrays = {name: value.numpy() for name, value in written.tensors.items()}
    bias = np.abs(arrays["b_enc"])
    np.savez(written.weights, **arrays | {"b_enc": bias, "threshold": bias})
    at = PretrainedUnits(str(written.path)).encode(torch.zeros(2, WIDTH))
    assert len(at.values) == 0
    np.savez(written.weights, **arrays | {"b_enc": bias, "threshold": np.nextafter(bias, np.float32(-1))})
    above = PretrainedUnits(str(written.path)).encode(torch.zeros(2, WIDTH))
    assert len(above.values) == 2 * ATOMS


def test_gemma_scope_outside_its_repository_needs_a_site(tmp_path):
    written = sae_files.gemma_scope(tmp_path / "layer_20" / "width_16k" / "average_l0_71")
    refused(written.path, "layer 20", "give `site`")
    same(written, PretrainedUnits(str(written.path), site="resid_post.20"))


def test_gemma_scope_that_is_refused(tmp_path):
    written = sae_files.gemma_scope(tmp_path / GEMMA.format("res"), scaling_factor=torch.full((ATOMS,), 1.5))
    refused(written.path, "params.npz", "scaling_factor is not all ones")
    path = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_20" / "width_16k" / "average_l0_71"
    refused(sae_files.gemma_scope(path).path, "transcoder")
    path = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_44"
    refused(sae_files.gemma_scope(path).path, "embeddings")


def test_npz_with_python_objects_is_refused(tmp_path):
    folder = tmp_path / GEMMA.format("res")
    written = sae_files.gemma_scope(folder)
    arrays = {name: value.numpy() for name, value in written.tensors.items()}
    np.savez(written.weights, **arrays | {"threshold": np.array([Bomb()], dtype=object)}, allow_pickle=True)
    refused(folder, "params.npz", "Python objects")
    assert not Path("burnt").exists()
    written.weights.write_bytes(pickle.dumps(Bomb()))
    refused(folder, "params.npz")
    np.save(folder / "one.npy", np.zeros(3))
    (folder / "one.npy").rename(written.weights)
    refused(folder, "params.npz", "single array")
    with zipfile.ZipFile(written.weights, "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY nonsense")
    refused(folder, "params.npz")
    assert not Path("burnt").exists()


@pytest.mark.parametrize(
    ("place", "config", "site"),
    [
        ("resid_post", {"hf_hook_point_in": "model.layers.17.output"}, "resid_post.17"),
        ("any", {"hf_hook_point_in": "model.layers.17.post_feedforward_layernorm.output"}, "mlp_out.17"),
        ("any", {"hf_hook_point_in": "model.layers.17.self_attn.o_proj.input"}, "layers.17.self_attn.o_proj:input"),
        ("resid_post_all", {}, "resid_post.17"),
        ("mlp_out", {}, "mlp_out.17"),
        ("attn_out_all", {}, "layers.17.self_attn.o_proj:input"),
    ],
)
def test_gemma_scope_2(tmp_path, place, config, site):
    written = sae_files.gemma_scope_2(tmp_path / place / "layer_17_width_16k_l0_small", **config)
    unit = PretrainedUnits(str(written.path))
    same(written, unit)
    assert unit.site == site


def test_gemma_scope_2_that_is_refused(tmp_path):
    name = "layer_17_width_16k_l0_small_affine"
    refused(sae_files.gemma_scope_2(tmp_path / "transcoder_all" / name).path, "transcoder")
    hook = "model.layers.17.pre_feedforward_layernorm.output"
    to = "model.layers.17.post_feedforward_layernorm.output"
    written = sae_files.gemma_scope_2(tmp_path / "a" / name, hf_hook_point_in=hook, hf_hook_point_out=to)
    refused(written.path, "transcoder")
    written = sae_files.gemma_scope_2(tmp_path / "resid_post" / name)
    written.rewrite(affine_skip_connection=torch.zeros(WIDTH, WIDTH))
    refused(written.path, "transcoder")
    written = sae_files.gemma_scope_2(tmp_path / "resid_post" / name, architecture="topk")
    refused(written.path, "'topk'", "jump_relu")
    refused(sae_files.gemma_scope_2(tmp_path / "b" / name, hf_hook_point_in=hook).path, hook, "give `site`")


# Llama Scope


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learnt": True},
        {"sparsity_include_decoder_norm": False},
        {"learnt": True, "sparsity_include_decoder_norm": False},
        {"norm_activation": "inference"},
        {"act_fn": "topk", "top_k": 6, "jump_relu_threshold": 0},
        {"act_fn": "topk"},
    ],
)
def test_llama_scope(tmp_path, changes):
    """Against the pass as it is trained; the unit of codes is free, reconstruction and supports are not."""
    written = sae_files.llama_scope(tmp_path / "L15R", **changes)
    unit = PretrainedUnits(str(written.path))
    same(written, unit, codes_too=False)
    assert unit.site == "resid_post.15"
    assert unit.target_l0 == (6 if "top_k" in changes else None)
    if not changes.get("learnt"):
        same(written, PretrainedUnits(str(written.weights)), codes_too=False)


def test_llama_scope_codes_are_those_of_the_folded_model(tmp_path):
    """After the library's own folding: weights on rows as they are, unit decoder, the threshold as it stands."""
    written = sae_files.llama_scope(tmp_path)
    w = {name: value.double() for name, value in written.tensors.items()}
    factor = WIDTH**0.5 / 2.5
    length = w["decoder.weight"].norm(dim=0)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = (x @ w["encoder.weight"].T + w["encoder.bias"] / factor) * length
        codes = pre * (pre > 0.3)
        return codes, codes @ (w["decoder.weight"] / length).T + w["decoder.bias"] / factor

    written.forward = forward
    same(written)
    torch.testing.assert_close(PretrainedUnits(str(tmp_path)).atoms.norm(dim=1), torch.ones(ATOMS))


def test_llama_scope_with_unit_columns_is_what_saelens_makes_of_it(tmp_path):
    """Encoder and threshold times the factor, decoder and its bias divided by it."""
    written = sae_files.llama_scope(tmp_path)
    column = written.tensors["decoder.weight"]
    written.rewrite(decoder__weight=column / column.norm(dim=0))
    w = {name: value.double() for name, value in written.tensors.items()}
    factor = WIDTH**0.5 / 2.5

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ (w["encoder.weight"] * factor).T + w["encoder.bias"]
        codes = pre * (pre > 0.3 * factor)
        decoder = (column / column.norm(dim=0)).double()
        return codes / factor, codes @ (decoder / factor).T + w["decoder.bias"] / factor

    written.forward = forward
    same(written)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, ("transcoder", "hook_mlp_out")),
        ({"norm_activation": "token-wise"}, ("token-wise",)),
        ({"use_glu_encoder": True}, ("use_glu_encoder",)),
        ({"apply_decoder_bias_to_pre_encoder": True}, ("apply_decoder_bias_to_pre_encoder",)),
        ({"act_fn": "batchtopk"}, ("batchtopk", "not read")),
        ({"jump_relu_threshold": None}, ("jump_relu_threshold is None",)),
        ({"dataset_average_activation_norm": None}, ("dataset_average_activation_norm", "not there")),
        ({"dataset_average_activation_norm": {"in": 2.0, "out": 0}}, ("norm.out is 0",)),
        ({"d_model": 0}, ("d_model is 0",)),
        ({"d_sae": 13}, ("encoder.weight",)),
    ],
)
def test_llama_scope_that_is_refused(tmp_path, changes, words):
    sae_files.llama_scope(tmp_path).spoil(**changes)
    refused(tmp_path, "hyperparams.json" if "d_sae" not in changes else "final.safetensors", *words)


# damage, whatever the format

MAKERS = {
    "saelens": lambda folder: sae_files.saelens(folder),
    "sparsify": lambda folder: sae_files.sparsify(folder / "layers.5"),
    "gemma_scope_2": lambda folder: sae_files.gemma_scope_2(folder / "resid_post" / "layer_3_width_16k_l0_small"),
    "llama_scope": lambda folder: sae_files.llama_scope(folder),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_damaged_safetensors(tmp_path, maker):
    written = MAKERS[maker](tmp_path)
    whole = written.weights.read_bytes()
    for content in (whole[:-7], whole[:9], b"", b"\xff" * 64, whole[:200] + b"\0" * (len(whole) - 200)):
        written.weights.write_bytes(content)
        if content.startswith(whole[:200]) and len(content) == len(whole):
            continue  # zeros for weights are weights
        refused(written.path, written.weights.name, "download it again")


@pytest.mark.parametrize("maker", MAKERS)
def test_every_tensor_is_missed_measured_and_looked_at(tmp_path, maker):
    written = MAKERS[maker](tmp_path)
    for name, tensor in written.tensors.items():
        key = name.replace(".", "__")
        written.rewrite(**{key: None})
        refused(written.path, written.weights.name, f"no tensor {name}")
        written.rewrite(**{key: tensor[:-1].clone()})
        refused(written.path, written.weights.name, "has the shape")
        written.rewrite(**{key: tensor.unsqueeze(0)})
        refused(written.path, written.weights.name, name, "has the shape")
        written.rewrite(**{key: tensor.int()})
        refused(written.path, written.weights.name, name, "floating-point")
        spoilt = tensor.clone()
        spoilt.view(-1)[0] = torch.nan
        written.rewrite(**{key: spoilt})
        refused(written.path, written.weights.name, f"{name} has 1 values", "finite")
        spoilt.view(-1)[0] = -torch.inf
        written.rewrite(**{key: spoilt})
        refused(written.path, written.weights.name, name, "finite")
    written.rewrite(surprise=torch.zeros(3))
    refused(written.path, written.weights.name, "surprise")
    written.rewrite()
    same(written, codes_too=maker != "llama_scope")


@pytest.mark.parametrize("maker", ["saelens", "sparsify", "llama_scope"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_settings_that_are_none(tmp_path, maker, content):
    written = MAKERS[maker](tmp_path)
    assert written.settings is not None
    written.settings.write_bytes(content)
    refused(written.path, written.settings.name)


def test_a_name_in_a_file_prints_as_one_plain_line(tmp_path):
    sae_files.saelens(tmp_path).spoil(architecture="\x1b[31mred\nline")
    with pytest.raises(AtomsError) as caught:
        PretrainedUnits(str(tmp_path))
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_to_read(tmp_path):
    refused(tmp_path / "nowhere", "no such file")
    refused(tmp_path, "no SAE of a known format", "sparsify: cfg.json + sae.safetensors")
    refused(sae_files.saelens(tmp_path / "a").path, "format=gemma", format="gemma")
    refused(tmp_path / "a", "params.npz", "cannot be read", format="gemma_scope")
    refused(tmp_path / "a", "ae.pt", "no such file", format="dictionary_learning")
    refused(tmp_path, "1 SAEs (a)")


def test_low_precision_weights_are_read_as_they_are(tmp_path):
    written = sae_files.saelens(tmp_path, "topk", dtype="bfloat16")
    rounded = {name: value.bfloat16() for name, value in written.tensors.items()}
    written.tensors.update({name: value.float() for name, value in rounded.items()})
    safetensors.torch.save_file(rounded, written.weights)
    same(written)


# the encoder


@settings(max_examples=40, deadline=None)
@given(
    activation=st.sampled_from(["relu", "jumprelu", "gated", "topk", "abstopk", "groupmax"]),
    norm=st.sampled_from(["none", "mean", "length", "layer"]),
    batch=st.integers(0, 9),
    block=st.integers(1, 100),
    seed=st.integers(0, 1000),
)
def test_blocks_change_nothing(activation, norm, batch, block, seed):
    """Rows are encoded one by one, so that how they are cut does not matter to supports."""
    make = sae_files.Random(seed)
    encoder = Encoder(
        make(12, 8), make(12), make(8), activation, k=3, threshold=make.positive(12), gain=make.positive(12),
        offset=make(12), row_norm=norm, bias_atom=norm in ("length", "layer"),
    )  # fmt: skip
    x = make(batch, 8)
    with pytest.MonkeyPatch.context() as patch:
        whole = encoder.encode(x)
        patch.setattr(encoder_module, "_BLOCK", block)
        cut = encoder.encode(x)
    check_codes(whole, 12 + encoder.num_row_atoms)
    check_codes(cut, 12 + encoder.num_row_atoms)
    assert len(cut) == len(whole) == batch
    torch.testing.assert_close(cut.to_dense(), whole.to_dense(), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    activation=st.sampled_from(["relu", "gated", "topk"]),
    norm=st.sampled_from(["none", "mean", "length", "layer"]),
    seed=st.integers(0, 1000),
)
def test_weights_are_what_coefficients_change_by(activation, norm, seed):
    """Rows of one mean and length are apart by what does not change either, and coefficients by their product."""
    make = sae_files.Random(seed)
    gain = make.positive(12) if activation == "gated" else None
    encoder = Encoder(
        make(12, 8), make.positive(12), make(8), activation, k=12, gain=gain, offset=make.positive(12), row_norm=norm,
        bias_atom=norm in ("length", "layer"),
    )  # fmt: skip
    basis = torch.linalg.qr(torch.cat([torch.ones(8, 1), make(8, 7)], 1)).Q.T  # the first direction is that of the mean
    row = basis[0] + 2 * basis[1]
    turned = basis[0] + 2 * (basis[1] * 0.9995**0.5 + basis[2] * 0.0005**0.5)
    first, second = encoder.encode(torch.stack([row, turned])).to_dense()
    weights = encoder.weights
    assert weights.shape == (12 + encoder.num_row_atoms, 8)
    both = (first != 0) & (second != 0)
    if encoder.bias_atom:
        assert not weights[-1].any()
        assert first[-1].item() == pytest.approx(second[-1].item(), rel=1e-5)
    # the row's scale divides the row and multiplies the coefficient
    torch.testing.assert_close((second - first)[both], ((turned - row) @ weights.T)[both], atol=1e-5, rtol=1e-3)
    if norm in ("mean", "layer"):
        assert (weights[12] @ row).item() == pytest.approx(row.mean().item(), rel=1e-5)
        torch.testing.assert_close(weights[:12].sum(1), torch.zeros(12), atol=1e-5, rtol=0)


def test_a_unit_moves_with_all_it_holds(tmp_path):
    unit = PretrainedUnits(str(sae_files.saelens(tmp_path, "gated").path))
    unit.to(torch.device("meta"))
    tensors = [unit.atoms, unit.centre, unit.encoder.w_enc, unit.encoder.gain, unit.encoder.shift]
    assert all(tensor is not None and tensor.is_meta for tensor in tensors)


def test_fit_holds_the_site_and_the_width(tmp_path, planted_data):
    from atoms.activations.site_rows import SiteRows

    train = SiteRows(planted_data(), "planted", "train")
    unit = PretrainedUnits(str(sae_files.saelens(tmp_path).path))
    with pytest.raises(AtomsError, match=r"of site resid_post\.5, not of planted"):
        unit.fit(train)
    with pytest.raises(AtomsError, match="width 12, but planted has 16"):
        PretrainedUnits(str(tmp_path), site="planted").fit(train)


# the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one repository; remembers what was asked for."""
    asked: list[dict[str, object]] = []
    root = tmp_path / "models--google--gemma-scope-2b-pt-res" / "snapshots" / "abc"
    sae_files.gemma_scope(root / "layer_20" / "width_16k" / "average_l0_71")
    sae_files.dictionary_learning(root / "dl" / "trainer_0", "BatchTopKSAE")
    (root / "dl" / "trainer_0" / "checkpoints").mkdir()
    (root / "dl" / "trainer_0" / "ae.pt").rename(root / "dl" / "trainer_0" / "checkpoints" / "ae_10.pt")

    def snapshot_download(**request: object) -> str:
        asked.append(request)
        if request["repo_id"] == "no/repo":
            raise RuntimeError("401 Client Error.\nRepository Not Found")
        return str(root)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_hub(hub):
    inside = "layer_20/width_16k/average_l0_71"
    unit = PretrainedUnits(f"hf:google/gemma-scope-2b-pt-res/{inside}")
    assert unit.site == "resid_post.20"
    assert unit.name == f"google/gemma-scope-2b-pt-res/{inside}"
    assert hub[0]["repo_id"] == "google/gemma-scope-2b-pt-res"
    assert hub[0]["revision"] is None
    patterns = hub[0]["allow_patterns"]
    assert f"{inside}/params.npz" in patterns
    assert all("*" not in pattern for pattern in patterns)  # one SAE, not a repository of terabytes
    PretrainedUnits(f"hf:google/gemma-scope-2b-pt-res@abc/{inside}/params.npz")
    assert hub[1]["revision"] == "abc"
    unit = PretrainedUnits("hf:google/gemma-scope-2b-pt-res/dl/trainer_0/checkpoints/ae_10.pt")
    assert unit.site == "resid_post.8"
    assert "dl/trainer_0/config.json" in hub[2]["allow_patterns"]


def test_hub_refusals(hub, monkeypatch):
    refused("hf:no/repo/x", "cannot be fetched", "401 Client Error", "HF_TOKEN")
    refused("hf:google/gemma-scope-2b-pt-res/layer_99", "has no SAE at layer_99")
    refused("hf:google/gemma-scope-2b-pt-res", "1 SAEs", "name one")
    for bad in ("hf:", "hf:google", "hf:google/", "hf:a/b/../../x", "hf:a/b//etc/passwd"):
        refused(bad, "write hf:org/repo")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf:google/gemma-scope-2b-pt-res/layer_20", "not installed")
