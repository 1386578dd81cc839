"""``atoms store``: info, ls and verify."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from stores import SITE, SPEC, flip, make_store, shard

from atoms.activations.lock import StoreLock
from atoms.activations.store import ActivationStore, StoreWriter
from atoms.cli import main


def run(capsys, *words: str, status: int = 0) -> tuple[str, str]:
    if status:
        with pytest.raises(SystemExit) as stop:
            main(["store", *words])
        assert stop.value.code == status
    else:
        main(["store", *words])
    return capsys.readouterr()


def row(out: str, first: str) -> list[str]:
    """The words of the line that begins with a word."""
    (line,) = [line for line in out.splitlines() if line.split()[:1] == [first]]
    return line.split()[1:]


def test_info(planted_store, capsys):
    out, _ = run(capsys, "info", str(planted_store))
    store = ActivationStore.open(planted_store)
    assert row(out, "state") == ["complete"]
    assert row(out, "identity") == [store.identity_hash]
    assert row(out, "format")[:2] == ["2;", "float32;"]
    assert row(out, "train") == ["4,800", "?", "?"]
    assert row(out, "planted") == ["16", "yes", "0", "0", "0"]
    assert '"kind": "planted"' in out


def test_info_of_a_harvest_counts_documents_and_groups(tmp_path, capsys):
    writer = StoreWriter.create(tmp_path / "s", replace(SPEC, splits={"train": 0, "val": 0}))
    writer.finalise({"documents": 7, "splits": {"train": {"documents": 5, "groups": 4}}})
    out, _ = run(capsys, "info", str(tmp_path / "s"))
    assert row(out, "train") == ["0", "5", "4"]
    assert row(out, "val") == ["0", "?", "?"]
    assert row(out, SITE) == ["8", "no", "0", "0", "0"]
    assert "noted      documents 7" in out


def test_info_of_a_store_being_written(own_store, capsys):
    (own_store / "complete.json").unlink()
    (own_store / "manifest" / "train-000001.json").unlink()
    with StoreLock(own_store):
        out, _ = run(capsys, "info", str(own_store))
    assert " ".join(row(out, "state")).startswith("6 of 7 blocks, process ")


def test_ls(pristine, tmp_path, capsys):
    shutil.copytree(pristine, tmp_path / "stores" / "whole")
    shutil.copytree(pristine, tmp_path / "stores" / "more" / "begun")
    (tmp_path / "stores/more/begun/complete.json").unlink()
    shutil.copytree(pristine, tmp_path / "stores" / "spoilt")
    flip(tmp_path / "stores/spoilt/zarr.json", 300)
    out, _ = run(capsys, "ls", "stores")
    assert row(out, "stores/whole")[-1] == "complete"
    assert row(out, "stores/more/begun")[-4:] == ["7", "of", "7", "blocks"]
    assert "187" in row(out, "stores/whole")
    assert "damaged" in row(out, "stores/spoilt")
    Path("empty").mkdir()
    assert run(capsys, "ls", "empty")[1] == "no store at or below empty\n"


def test_verify(own_store, capsys):
    out, err = run(capsys, "verify", str(own_store))
    assert out == (
        "whole      every byte is as it was written: rows train 150, val 37, test 0; sites model.layers.3, "
        "blocks/1:post\n"
    )
    assert err.startswith("verify     ")
    flip(shard(own_store), 7)
    shard(own_store, index=4).unlink()
    (own_store / "mine.txt").write_text("")
    out, err = run(capsys, "verify", str(own_store), status=1)
    assert out.splitlines() == [
        "wrong      train/model.layers.3/acts/c/0/0 is damaged (chunk 0: wrong checksum)",
        "wrong      train/model.layers.3/acts/c/4/0 is missing",
        "stray      mine.txt is no part of the store and is never read; delete it if it is not yours",
        "mend       delete manifest/train-000000.json in the store and run `atoms cache` with the same config to "
        "rewrite that block",
        "mend       delete manifest/train-000002.json in the store and run `atoms cache` with the same config to "
        "rewrite that block",
    ]
    assert err.endswith(f"atoms: error: data.store={own_store}: 2 things are wrong, see above\n")


def test_what_verify_says_mends(capsys):
    cache = ["cache", "--data.planted={width: 8, rows: 400}", "--data.store=s"]
    main(cache)
    before = ActivationStore.open("s").sealed
    for name in ("train/planted/acts/c/0/0", "moments/planted.safetensors", "val/zarr.json", "planted.safetensors"):
        flip(Path("s", name), 9)
    capsys.readouterr()
    out, _ = run(capsys, "verify", "s", status=1)
    assert sum(line.startswith("wrong ") for line in out.splitlines()) == 4
    for line in out.splitlines():
        if line.startswith("mend"):
            Path("s", line.split()[2]).unlink(missing_ok=True)
    main(cache)
    capsys.readouterr()
    assert run(capsys, "verify", "s")[0].startswith("whole")
    assert ActivationStore.open("s").sealed == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["look", "x"], "store look is no action: say info, ls or verify"),
        (["info", "nowhere"], "data.store=nowhere: no store there; mend the path"),
        (["verify", "nowhere"], "data.store=nowhere: no store there; mend the path"),
        (["ls", "nowhere"], "nowhere cannot be listed (No such file or directory): name a directory"),
        (["info", "ftp://somewhere/s"], "data.store=ftp://…: unknown kind of store; use a path, file://, s3://"),
        (
            ["info", "https://me:hidden@host/s?key=hidden"],
            "data.store=https://host/s: the URL carries more than a place",
        ),
        (["ls", "http://127.0.0.1:9/s"], "http://127.0.0.1:9/s cannot be listed: plain HTTP has no folders"),
    ],
)
def test_one_line_of_error(words, message, capsys):
    _, err = run(capsys, *words, status=1)
    assert err.startswith(f"atoms: error: {message}")
    assert "hidden" not in err
    assert err.count("\n") == 1


def test_help(capsys):
    assert "atoms store verify PATH" in run(capsys)[0]
    with pytest.raises(SystemExit):
        main(["store", "info", "--help"])
    assert "a directory or URL" in capsys.readouterr().out
    make_store(Path("x"), replace(SPEC, splits={"train": 4}))
    assert row(run(capsys, "info", "x")[0], "train") == ["4", "?", "?"]
