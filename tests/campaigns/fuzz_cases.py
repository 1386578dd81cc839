"""Random and mutated configs and command lines: what is asked for, as a function of seed and number."""

import contextlib
import dataclasses
import inspect
import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import yaml

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.matrix import MatrixSpec
from atoms.activations.model_source import ModelSpec
from atoms.activations.planted import PlantedSpec
from atoms.training.checkpoint import KeepLast
from atoms.training.module import TSAEModule

EVIL = "evil_module"
"""A module that lies on the path and leaves a mark when imported."""

BASE: dict[str, Any] = {
    "data": {"store": "store", "batch_size": 64, "lanes": 4, "pool_mib": 1},
    "model": {"expansion": 2.0, "target_l0": 2.0},
    "trainer": {"fast_dev_run": True, "logger": False, "accelerator": "cpu", "enable_progress_bar": False},
}


class Case(NamedTuple):
    """What is run."""

    words: list[str]
    files: dict[str, bytes]


def _parameters(made: Any) -> list[str]:
    names = inspect.signature(made).parameters
    return [name for name in names if name not in ("self", "args", "kwargs", "width")]


SETTINGS = [
    *(f"trainer.{name}" for name in _parameters(L.Trainer)),
    *(f"model.{name}" for name in _parameters(TSAEModule)),
    *(f"data.{name}" for name in _parameters(ActivationDataModule)),
    *(f"checkpoint.{name}" for name in _parameters(KeepLast)),
    *(f"data.planted.{field.name}" for field in dataclasses.fields(PlantedSpec)),
    *(f"data.matrix.{field.name}" for field in dataclasses.fields(MatrixSpec)),
    *(f"data.harvest.{field.name}" for field in dataclasses.fields(HarvestSpec)),
    *(f"data.harvest.model.{field.name}" for field in dataclasses.fields(ModelSpec)),
    "data.harvest.corpus.paths", "data.harvest.corpus.limit", "model.members.a.power", "seed_everything", "ckpt_path",
    "weights_only", "output", "splits", "config", "verbose",
]  # fmt: skip
_PLACE = ("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator")
"""A good value of these starts other processes."""
_WRITES = ("root", "dirpath", "default_root_dir", "output", "store")

WORDS = ["", " ", "null", "~", "true", "no", "nan", ".nan", ".inf", "-.inf", "1e999", "-1", "0", "-0", "0x10", "0o7",
    "1_000", "1e3", "1.5", "2", "3", "7", "64", "1e-300", "99999999999999999999999", "-99999999999999999999", "auto",
    "None", "Infinity", "x", "a b", "[", "]", "{", "}", "[]", "{}", "[[]]", "[null]", "{a: }", "{null: null}",
    "{1: 2}", "[1, [2, [3]]]", "{a: {b: {c: null}}}", "{class_path: null}", "{class_path: 3}", "{class_path: a}",
    "{init_args: {}}", "{class_path: x.y, init_args: 3}", "'", '"', "'a", "&a [*a]", "*a", "!!python/name:os.system ''",
    "!!python/object/apply:os.system [echo]", "!!binary aGk=", "!!set {a}", "!!int x", "2020-01-01", "12:30:45", "%",
    "@",
    "`", "|", ">", "? a", "- a", "a: b: c", "#", "é", "名", "🙂", "\u202edrow", "\x1b[31mred", "\x07", "a\nb", "a\tb",
    "\u2028", "\ud800", "../../x", "/dev/null", "/dev/full", "/proc/self/mem", "/", ".", "..", "~root", "store",
    "acts.npy", "a/b", "a" * 300, "a/" * 200, "${oc.env:HOME}", "${x}", "$HOME", "%(x)s", "{0}", "%s%s%n",
    "<script>alert(1)</script>", "s3://x/y", "http://127.0.0.1:9/x", "file:///etc/passwd", "memory://x", "-", "--",
    "---",
    "os.system", "os", "builtins.exec", "torch.hub.load", "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.Trainer",
    f"{EVIL}.Callback", f"[{EVIL}.Callback]", f"{{class_path: {EVIL}.Callback}}", "planted", "resid_post.3",
    "bf16-mixed", "32-true", "16-true", "steps", "simple", "advanced"]  # fmt: skip

ATTACKS = [
    "os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "pickle.loads", "torch.load",
    "torch.hub.load", "torch.os.system", "torch.utils.cpp_extension.load", "lightning.pytorch.cli.instantiate_class",
    "lightning.fabric.cli.main", "jsonargparse.set_parsing_settings", "atoms.cli.main", "runpy.run_path",
    f"{EVIL}.Callback", f"{EVIL}.run", EVIL, f"{EVIL}.", f".{EVIL}", "atoms.commands.imports.trust",
    f"lightning.{EVIL}.Callback", "functools.partial", "importlib.import_module", "webbrowser.open", "antigravity.x",
]  # fmt: skip
_CLASS_SETTINGS = ["trainer.callbacks", "trainer.callbacks+", "trainer.logger", "trainer.strategy", "trainer.profiler",
    "trainer.plugins", "trainer.accelerator", "data.harvest.corpus", "data", "model", "trainer", "data.harvest",
    "data.planted", "model.members", "trainer.callbacks.help", "trainer.logger.help", "checkpoint",
    "data.harvest.trainer", "data.harvest.model"]  # fmt: skip


def nested(name: str, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` of ``a.b``."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``base`` with ``change`` in it."""
    out = dict(base)
    for key, value in change.items():
        inside = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if inside else value
    return out


class Generator:
    """Draws one case.

    Args:
        seed: Seed and number of the case.
    """

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def word(self) -> str:
        """A value that somebody might give, or not."""
        pick = self.random
        if pick.random() < 0.75:
            return pick.choice(WORDS)
        if pick.random() < 0.5:
            return str(pick.choice([1, -1]) * pick.choice([10.0**e for e in range(-30, 40, 3)]))
        return "".join(pick.choices(string.printable + "é名🙂\x00\x1b\u202e", k=pick.randint(0, 12)))

    def setting(self) -> str:
        """The name of a setting."""
        return self.random.choice(SETTINGS)

    def value(self, name: str) -> str:
        """A value for a setting that starts no process and stays in the directory."""
        while True:
            word = self.word()
            if name in _PLACE and not word.strip("-_0.").isalpha() and any(c.isdigit() for c in word):
                continue
            if name.rpartition(".")[2] in _WRITES and word.startswith(
                ("/", "..", "~", "file:", "s3:", "http:", "memory:")
            ):
                continue
            if name in ("trainer.fast_dev_run", "data.planted.rows", "trainer.logger") and word in (
                "no",
                "true",
                "null",
            ):
                continue
            return word

    def command(self) -> str:
        """Which command."""
        return self.random.choices(["fit", "cache", "validate", "test", "predict"], [6, 6, 1, 1, 1])[0]

    def base(self, command: str, change: dict[str, Any] | None = None) -> Case:
        """A command with a config file, which works if nothing is changed."""
        content = merged(BASE, change or {})
        if command == "validate":
            return Case(["validate", "--ckpt_path=last.ckpt", "--trainer.accelerator=cpu"], {})
        words = [command, "--config=config.yaml"]
        if command in ("test", "predict"):
            words.append("--ckpt_path=last.ckpt")
            content = merged(content, {"trainer": {"fast_dev_run": False}})
            content.pop("model")
            content["data"] = {"store": "store"}
        return Case(words, {"config.yaml": yaml.safe_dump(content, allow_unicode=True).encode()})

    def case(self) -> tuple[str, Case]:
        """Kind and case."""
        kinds: list[Callable[[], Case]] = [
            self.words, self.words, self.words, self.yaml_value, self.yaml_value, self.unknown, self.damaged, self.file,
            self.attack, self.garbage, self.imported, self.path, self.sources,
        ]  # fmt: skip
        kind = self.random.choice(kinds)
        return kind.__name__, kind()

    # ------------------------------------------------------------------------------------------ kinds

    def words(self) -> Case:
        """Settings on the command line."""
        words, files = self.base(self.command())
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            name = self.setting()
            value = self.value(name)
            words += self.random.choice(
                [[f"--{name}={value}"], [f"--{name}", value], [f"--{name}+={value}"], [f"--{name}"]]
            )
        return Case(words, files)

    def yaml_value(self) -> Case:
        """Settings in the file, as text and as what the text stands for."""
        change: dict[str, Any] = {}
        for _ in range(self.random.choice([1, 1, 2])):
            name = self.setting()
            value: Any = self.value(name)
            if self.random.random() < 0.7:
                with contextlib.suppress(yaml.YAMLError, ValueError, TypeError):
                    value = yaml.safe_load(value)
            wrapped = self.random.random()
            value = [value] if wrapped < 0.1 else {"a": value} if wrapped < 0.2 else value
            change = merged(change, nested(name, value))
        try:
            return self.base(self.random.choice(["fit", "cache"]), change)
        except (yaml.YAMLError, UnicodeEncodeError):
            return self.words()

    def unknown(self) -> Case:
        """A setting that is none: a letter changed, dropped, doubled; cut short; or none at all."""
        name, pick = self.setting(), self.random
        at = pick.randrange(len(name))
        wrong = pick.choice([
            name[:at] + name[at + 1 :], name[:at] + "q" + name[at + 1 :], name[:at] + name[at] + name[at:],
            name[: at + 1],
            f"{name}.x", f"x.{name}", name.upper(), name.replace(".", "..", 1), name.replace("_", "-"), self.word(),
        ])  # fmt: skip
        command = pick.choice(["fit", "cache"])
        if pick.random() < 0.5:
            words, files = self.base(command)
            return Case([*words, f"--{wrong}={self.value(name)}"], files)
        try:
            return self.base(command, nested(wrong, pick.choice([1, None, "x", {}, []])))
        except (yaml.YAMLError, UnicodeEncodeError):
            return self.base(command, {"nothing": 1})

    def damaged(self) -> Case:
        """A config file after an accident."""
        words, files = self.base(self.random.choice(["fit", "cache"]))
        content, pick = bytearray(files["config.yaml"]), self.random
        for _ in range(pick.choice([1, 1, 2, 5, 20])):
            at = pick.randrange(len(content) + 1)
            how = pick.randrange(5)
            if how == 0:
                del content[at:]
            elif how == 1:
                content[at:at] = bytes([pick.randrange(256)])
            elif how == 2 and at < len(content):
                content[at] ^= 1 << pick.randrange(8)
            elif how == 3:
                stop = min(len(content), at + pick.randrange(30))
                content[at:at] = content[at:stop]
            else:
                del content[at : at + pick.randrange(8)]
        return Case(words, {"config.yaml": bytes(content)})

    def file(self) -> Case:
        """A config file that is no config."""
        laughs = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" if i else "l0: &l0 [x]" for i in range(9))
        maps = "\n".join(f"m{i}: &m{i} {{a: *m{i - 1}, b: *m{i - 1}}}" if i else "m0: &m0 {a: 1}" for i in range(25))
        contents = [
            b"", b" ", b"\n\n", b"null", b"3", b"[]", b"{}", b"- a\n- b", b"text", b"\x00\x01\xff", bytes(range(256)),
            "data: {store: store}".encode("utf-16"), b"\xef\xbb\xbfdata: {store: store}", b"data:\n\tstore: store",
            b"data: {store: a}\ndata: {store: store}", b"data: &a {store: store}\nmodel: *a", b"data: &a [*a]",
            b"data: &a {store: *a}", b"<<: {data: {store: store}}", b"a: *nowhere", b"---\ndata: {}\n---\nmodel: {}",
            b"%YAML 9.9\n---\ndata: {}", b"data: !!python/object/apply:os.system ['touch EVIL']",
            b"!!python/object/new:os.system ['touch EVIL']", b"data: !!python/module:evil_module",
            b"data: !include /etc/passwd",
            b"? {a: b}\n: c", b"[1]: 2", b"null: null", b"1: 2", b"data: {1: 2}", b"data: {null: 3}", b"true: false",
            laughs.encode(), f"data: {{store: store}}\n{laughs}".encode(), maps.encode(),
            f"{laughs}\nmodel: *l8".encode(),
            b"[" * 5000, b"{a: " * 3000, b"a: " * 3000, b"- " * 4000, b"data: {store: " + b"x" * 200_000 + b"}",
            b'"' * 999,
            b"data: {store: store, planted: null, harvest: null, matrix: null}", b"data:", b"data: {}", b"trainer:",
            b"model: ",
            b"fit: {data: {store: store}}", b"config: config.yaml", b"subcommand: fit", b"class_path: os.system",
            b"data: {class_path: os.system, init_args: {a: 1}}", b"seed_everything: [1]", b"seed_everything: -5",
            b"$schema: x",
            b"__path__: x", b"data: {__path__: x, store: store}", b"{\"data\": {\"store\": \"store\"}}",
            b"\r\rdata: {}\r",
        ]  # fmt: skip
        words, _ = self.base(self.random.choice(["fit", "cache", "validate"]))
        return Case([*words, *(["--config=config.yaml"] if words[0] == "validate" else [])],
                    {"config.yaml": self.random.choice(contents)})  # fmt: skip

    def attack(self) -> Case:
        """A class path that nobody may name."""
        pick = self.random
        name, path = pick.choice(_CLASS_SETTINGS), pick.choice(ATTACKS)
        values: list[Any] = [
            path, {"class_path": path}, {"class_path": path, "init_args": {"command": "touch EVIL", "a": None}},
            {"class_path": path, "dict_kwargs": {"x": [{"class_path": path}]}}, [path], [{"class_path": path}],
            {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": path}},
            [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": path}}],
            {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": {"class_path": path}}},
            {"class_path": "atoms.activations.TextFiles", "init_args": {"paths": [{"class_path": path}]}},
            {"name": path, "class_path": path}, {"a": {"class_path": path}},
        ]  # fmt: skip
        value, command = pick.choice(values), pick.choice(["fit", "cache"])
        if pick.random() < 0.5 or name.endswith((".help", "+")):
            words, files = self.base(command)
            return Case([*words, f"--{name}={value if isinstance(value, str) else json.dumps(value)}"], files)
        return self.base(command, nested(name, value))

    def garbage(self) -> Case:
        """Words in no order."""
        pick = self.random
        flags = ["--help", "-h", "--config", "-c", "--print_config", "--print_config=", "--version", "--", "-", "---",
        "-x",
            "--=", "=", "--allow_import", "--allow_import=", "--allow_import=os;x", "--config=", "--config=.", "--data",
            "--model", "--trainer", "--data={}", "--data=config.yaml", "--model=[]", "--trainer=null", "--data.help",
            "--print_shtab=bash", "fit", "cache", "predict", "FIT", "", " ", "--ckpt_path", "--import", "--doc_ids=x",
            "--config=config.yaml", "@config.yaml", "--fit.data.store=store", "--subcommand=fit"]  # fmt: skip
        words = [pick.choice([*flags, self.word(), f"--{self.setting()}", f"--{self.setting()}={self.word()[:9]}"])
                 for _ in range(pick.randint(0, 5))]  # fmt: skip
        safe = [word for word in words if not any(f"--{name}" in word for name in (*_PLACE, "data.planted.rows"))]
        command = [self.command()] if pick.random() < 0.8 else []
        return Case([*command, *safe], self.base("fit").files)

    def imported(self) -> Case:
        """Files of activations that are none, or other ones."""
        pick = self.random
        files = {"x.npy": pick.choice([b"", b"\x93NUMPY", pick.randbytes(300)])}
        names = ["acts.npy", "docs.npy", "x.npy", "nowhere.npy", "*.npy", "store", "store/train/planted/acts",
        "last.ckpt",
            "config.yaml", ".", "", "\x00", "s=acts.npy", "=acts.npy", "s=", "[", "**", "acts.npy/"]  # fmt: skip
        words = [
            pick.choice(["cache", "fit"]),
            "--trainer.fast_dev_run=true",
            "--trainer.logger=false",
            "--data.batch_size=64",
        ]
        words += ["--import", *pick.choices(names, k=pick.randint(0, 3))]
        for name in ("doc_ids", "token_ids", "positions", "data.matrix.key", "data.matrix.val", "data.matrix.dtype"):
            if pick.random() < 0.3:
                words += [f"--{name}={pick.choice([*names, self.word()])}"]
        return Case(words, files)

    def path(self) -> Case:
        """Files that are not what they should be."""
        pick = self.random
        names = ["nowhere", "store", "config.yaml", "acts.npy", "last.ckpt", "x.ckpt", ".", "", "/dev/null",
        "last.ckpt/", "\x00",
            "store/zarr.json", "a" * 5000]  # fmt: skip
        name = pick.choice(["ckpt_path", "data.store", "config", "output", "data.harvest.model.name"])
        words, files = self.base(self.command())
        content = bytearray((Path("last.ckpt")).read_bytes() if Path("last.ckpt").exists() else b"x" * 99)
        for _ in range(pick.choice([0, 1, 30])):
            content[pick.randrange(len(content))] = pick.randrange(256)
        if pick.random() < 0.3:
            del content[pick.randrange(len(content)) :]
        return Case([*words, f"--{name}={pick.choice(names)}"], {**files, "x.ckpt": bytes(content)})

    def sources(self) -> Case:
        """Small planted rows and a matrix, with settings that may or may not work."""
        pick = self.random
        source = pick.choice(["planted", "matrix", "harvest"])
        settings: dict[str, Any] = {
            "planted": {"width": 8, "atoms": 12, "active": 2, "rows": 400},
            "matrix": {"files": {"s": "acts.npy"}, "doc_ids": "docs.npy"},
            "harvest": {"model": {"name": "nowhere/at-all"}, "sites": ["resid_post.0"],
                        "corpus": {"class_path": "atoms.activations.TextFiles",
                        "init_args": {"paths": ["config.yaml"]}}},
        }[source]  # fmt: skip
        mine = [name for name in SETTINGS if name.startswith(f"data.{source}.") and name.count(".") == 2]
        change = merged(settings, {})
        for _ in range(pick.choice([1, 2])):
            name = pick.choice(mine)
            with contextlib.suppress(yaml.YAMLError, ValueError, TypeError):
                change[name.rpartition(".")[2]] = yaml.safe_load(self.value(name))
        if isinstance(change.get("rows"), int | float) and 10_000 < change["rows"] < 1e15:
            change["rows"] = 1e15
        try:
            return self.base(pick.choice(["fit", "cache"]), {"data": {"store": None, source: change}})
        except (yaml.YAMLError, UnicodeEncodeError):
            return self.words()


def case_of(seed: int, number: int) -> tuple[str, Case]:
    """The case of a number."""
    return Generator(f"{seed}-{number}").case()
