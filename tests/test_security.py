"""Files from strangers: nothing they name is imported or run, nothing they say leaves its place."""

import contextlib
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from atoms.activations.spec import acts_path, norm_path, site_folder
from atoms.cli import main
from atoms.commands.imports import ALLOWED, limit_imports, split_allowed, trust
from atoms.errors import printable
from atoms.training.checkpoint_file import SealedCheckpointIO

MODULE = "a_strangers_module"


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module on the path that leaves a mark when imported; gives the mark."""
    mark = tmp_path / "imported"
    (tmp_path / f"{MODULE}.py").write_text(
        f"import pathlib, lightning\npathlib.Path({str(mark)!r}).write_text('x')\n"
        "class Callback(lightning.Callback): pass\ndef run(*words): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop(MODULE, None)
    trust([])


@pytest.fixture
def said(capsys):
    """Run a command that must fail with one line; gives the line."""

    def run(*words) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (1, "")
        (line,) = err.splitlines()
        return line.removeprefix("atoms: error: ")

    return run


def seal(content) -> None:
    """Write ``bad.ckpt`` as `atoms fit` would: a digest keeps damage out, not strangers."""
    SealedCheckpointIO().save_checkpoint(content, "bad.ckpt")


# ---------------------------------------------------------------------------------------------- class paths

PATHS = [
    f"{MODULE}.Callback", "os.system", "subprocess.Popen", "torch.os.system", "torch.hub.load", "builtins.exec",
    "lightning.pytorch.cli.instantiate_class", "atoms.commands.imports.trust", "jsonargparse.set_parsing_settings",
]  # fmt: skip
SETTINGS = ["trainer.callbacks", "trainer.logger", "data.harvest.corpus"]
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_class_paths_outside_the_list_are_refused_unimported(path, setting, said, stranger):
    value = [{"class_path": path}] if setting == "trainer.callbacks" else {"class_path": path, "init_args": {"a": 1}}
    line = said("fit", f"--{setting}={json.dumps(value)}")
    assert "is not imported: a config may name classes of atoms, lightning, torch and torchmetrics" in line
    assert "--allow_import" in line
    assert not stranger.exists()


@pytest.mark.parametrize(
    "words",
    [
        [f"--trainer.callbacks+={MODULE}.Callback"],
        [f"--trainer.callbacks={MODULE}.Callback"],
        [f"--trainer.callbacks.help={MODULE}.Callback"],
        [f"--trainer.callbacks={{class_path: {LAMBDA}, init_args: {{setup: {MODULE}.run}}}}"],
        [f"--trainer.callbacks=[{{class_path: {LAMBDA}, init_args: {{setup: {{class_path: {MODULE}.Callback}}}}}}]"],
        [f"--trainer.plugins=[{{class_path: {MODULE}.Callback}}]"],
        [f"--data.harvest={{corpus: {{class_path: {MODULE}.Callback}}}}"],
    ],
)
@pytest.mark.parametrize("how", ["words", "file"])
def test_wherever_they_stand(words, how, said, stranger):
    if how == "file":
        name, _, value = words[0].removeprefix("--").partition("=")
        content = yaml.safe_load(value)
        if name.endswith((".help", "+")):
            pytest.skip("only on the command line")
        for part in reversed(name.split(".")):
            content = {part: content}
        Path("config.yaml").write_text(yaml.safe_dump(content))
        words = ["--config=config.yaml"]
    line = said("fit", *words)
    assert f"class_path {MODULE}." in line
    assert f"if you trust {MODULE}, add --allow_import {MODULE}" in line
    assert not stranger.exists()


@pytest.mark.parametrize(
    "setting", ["data", "model", "trainer", "model.members", "data.planted", "trainer.strategy", "trainer.profiler"]
)
def test_settings_that_take_no_class_or_any_text_import_none(setting, said, stranger):
    said("fit", "--data.store=nowhere", f"--{setting}={{class_path: {MODULE}.Callback, init_args: {{}}}}")
    assert not stranger.exists()


def test_the_flag_widens_the_list_for_one_command(said, stranger, monkeypatch):
    words = ["fit", "--data.store=nowhere", f"--trainer.callbacks+={MODULE}.Callback"]
    assert said(words[0], "--allow_import", MODULE, *words[1:]).startswith("data.store is nowhere")
    assert stranger.exists()
    assert "is not imported" in said(*words)
    monkeypatch.setenv("ATOMS_ALLOW_IMPORT", f"another_one, {MODULE}")
    assert said(*words).startswith("data.store is nowhere")


def test_no_config_widens_the_list(said, stranger):
    Path("config.yaml").write_text(f"allow_import: {MODULE}\ntrainer: {{callbacks: [{MODULE}.Callback]}}")
    said("fit", "--config=config.yaml")
    assert not stranger.exists()


@pytest.mark.parametrize(
    "words", [["--allow_import"], ["--allow_import="], ["--allow_import=a-b"], ["--allow_import=jsonargparse"]]
)
def test_what_the_flag_cannot_take(words, said):
    assert "is no package a config may name" in said("fit", *words)


def test_the_flag_is_taken_from_anywhere(monkeypatch):
    monkeypatch.delenv("ATOMS_ALLOW_IMPORT", raising=False)
    assert split_allowed(["--allow_import", "a.b", "fit", "--allow_import=c", "--x"]) == (["fit", "--x"], ["a.b", "c"])


def test_usual_classes_stay_usable(said):
    limit_imports()
    for path in (LAMBDA, "lightning.pytorch.callbacks.DeviceStatsMonitor", "EarlyStopping"):
        value = {"class_path": path, **({"init_args": {"monitor": "loss"}} if path == "EarlyStopping" else {})}
        assert said("fit", "--data.store=nowhere", f"--trainer.callbacks+={json.dumps(value)}").startswith(
            "data.store is"
        )
    assert set(ALLOWED) == {"atoms", "lightning", "torch", "torchmetrics"}


def test_a_checkpoint_names_no_class(fitted, said, stranger):
    content = torch.load(fitted.last, weights_only=True)
    content["atoms"]["run_id"] = None  # the run of the fit stays as it is
    for settings in ({"_class_path": f"{MODULE}.Callback"}, {"_instantiator": f"{MODULE}.run"}):
        seal({**content, "hyper_parameters": {**content["hyper_parameters"], **settings}})
        for command in ("validate", "test"):
            words = [word for word in fitted.words if word.startswith("--data.store")]
            words = ["--checks.skip=[l1, isometry, information]"] if command == "validate" else words
            with contextlib.suppress(SystemExit):
                main([command, "--ckpt_path=bad.ckpt", "--trainer.accelerator=cpu", *words])
            assert not stranger.exists()


# ---------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("!!python/object/apply:os.system ['touch ran']", "could not determine a constructor for the tag"),
        ("data: !!python/name:os.system ''", "could not determine a constructor for the tag"),
        ("a: &a [*a]", "*a refers to itself"),
        ("a0: &a0 x\n" + "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 20)), "more than 100,000"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 40 deep"),
        ("data: {store: a}\ndata: {store: b}", "data is set twice"),
        ("data: {store: '${oc.env:HOME}'}", "data.store is ${oc.env:HOME}, where there is no store"),
    ],
)  # fmt: skip
def test_configs_that_are_traps(text, line, said):
    Path("config.yaml").write_text(text)
    assert line in said("fit", "--config=config.yaml")
    assert not Path("ran").exists()


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/c.yaml", "memory://c.yaml", "s3://bucket/c.yaml"])
def test_a_config_is_a_local_file(place, said):
    assert said("fit", f"--config={place}").startswith("config: ")


def test_a_config_that_is_no_text(said):
    Path("config.yaml").write_bytes(bytes(range(128, 256)))
    assert said("fit", "--config=config.yaml").startswith("config: not UTF-8 text")


def test_settings_are_written_out_in_full(said):
    assert said("fit", "--model.target_l=3") == "model.target_l is no setting: did you mean model.target_l0?"
    assert said("fit", "--data.plant={}").startswith("data.plant is no setting")


@pytest.mark.parametrize("word", ["--data.harvest.model.sha256=null", "--data.harvest.model.sha256=~"])
def test_null_is_null_inside_a_setting_too(word, monkeypatch):
    from atoms.commands import fit

    Path("config.yaml").write_text(
        "data: {harvest: {model: {name: x, sha256: abc}, sites: [a], corpus: atoms.activations.StdlibDocstrings}}"
    )
    seen = []
    monkeypatch.setattr(fit.AtomsCLI, "_parse_ckpt_path", lambda self: seen.append(self.config) or sys.exit(1))
    with pytest.raises(SystemExit):
        main(["fit", "--config=config.yaml", word, "--data.harvest.corpus.limit=null"])
    (config,) = seen
    assert config.fit.data.harvest.model.sha256 is None
    assert config.fit.data.harvest.corpus.init_args.limit is None


# ---------------------------------------------------------------------------------------------- files


class Bomb:
    """Leaves a mark when unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("kind", ["pickle", "torch", "zip"])
def test_a_checkpoint_runs_nothing(kind, said):
    if kind == "pickle":
        Path("bad.ckpt").write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch":
        seal({"atoms": Bomb(), "hyper_parameters": Bomb()})
    else:
        with zipfile.ZipFile("bad.ckpt", "w") as file:
            file.writestr("../../escaped", "x")
            file.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    for command in ("validate", "test", "predict", "fit"):
        line = said(command, "--ckpt_path=bad.ckpt")
        assert line.startswith("ckpt_path is bad.ckpt, which is ")
        assert kind != "torch" or "not a checkpoint of atoms (UnpicklingError)" in line
    assert not Path("unpickled").exists()
    assert not Path("../../escaped").exists()


def test_a_checkpoint_that_unpacks_to_more_than_it_is(said, fitted):
    with zipfile.ZipFile(fitted.last) as source, zipfile.ZipFile("bad.ckpt", "w", zipfile.ZIP_DEFLATED) as file:
        for entry in source.infolist():
            file.writestr(entry.filename, source.read(entry))
        file.writestr(f"{source.namelist()[0].split('/')[0]}/data/999", bytes(300 * 2**20))
    assert Path("bad.ckpt").stat().st_size < 2**20
    assert "is compressed" in said("validate", "--ckpt_path=bad.ckpt")


def test_pickled_activations_are_refused(said):
    np.save("a.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
    Path("b.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "b.pt"):
        assert said("cache", f"--import={name}").startswith(f"data.matrix.files: {name} is ")
    assert not Path("unpickled").exists()


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("site", ["../../etc", "/etc/passwd", "..", ".", "a/../../b", "tokens", "\x00", "C:\\x", "~"])
def test_a_site_is_one_folder_below_its_split(site):
    folder = site_folder(site)
    assert Path(folder).name == folder
    assert folder not in (".", "..", "tokens")
    assert acts_path("train", site) == f"train/{folder}/acts"
    assert norm_path("train", site).startswith(f"train/{folder}/")


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "", ".", "a b", "<b>", "\x1b[31m", "${x}"])
def test_members_are_plain_names(name, said, fit_words):
    assert "name a member with letters" in said(
        *fit_words, "--trainer.logger=false", f"--model.members={json.dumps({name: {}})}"
    )


def test_a_name_moves_no_cursor(said):
    line = said("fit", "--data.store=\x1b[2J\x1b]0;title\x07\nevil\u202etxt")
    assert line.startswith("data.store is \\x1b[2J\\x1b]0;title\\x07 evil\\u202etxt, where there is no store")


def test_printable():
    assert printable("plain, 名, é 🙂 text") == "plain, 名, é 🙂 text"
    assert printable("a\x1b[31m\r\n\tb\x00\u202e\u200b\ud800") == "a\\x1b[31m b\\x00\\u202e\\u200b\\ud800"


def test_no_artifact_is_markup(fitted, planted_store, database):
    """A browser is shown pictures and plain text; a name in them is text."""
    (unit,) = fitted.folder.glob("runs/*/*/checkpoints/atoms/*")
    few = [
        "--checks.rows=64",
        "--checks.bootstrap=5",
        "--checks.skip=[l1, isometry, identifiability, shift, metric, information]",
    ]
    main(["validate", f"--unit={unit}", f"--data.store={planted_store}", "--trainer.accelerator=cpu", *few])
    files = [path for folder in (fitted.folder, Path()) for path in folder.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if "artifacts" in path.parts}
    assert kinds == {".png", ".yaml", ".json"}
