"""Two processes find what one finds: integers equal, everything else to rounding."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from judging import judge, projections, show, subject_of

import atoms
from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import PlantedSpec
from atoms.checks.check import Subject
from atoms.checks.metric_health import MetricHealth
from atoms.checks.representability import Representability
from atoms.checks.shift import Shift
from atoms.checks.sparsity import Sparsity

CHECKS = (Representability, Sparsity, Shift, MetricHealth)

RANK = """
import dataclasses, json, sys
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from judging import show
from test_checks_on_ranks import CHECKS, subject

rank = int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[4]}", rank=rank, world_size=2)
found = {}
for kind in CHECKS:
    check = kind(subject(sys.argv[2]))
    show(check, rank=rank, world_size=2)
    found[kind.name] = dataclasses.asdict(check.report({kind.name: check.compute()}))
with open(f"rank-{rank}.json", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
"""


def subject(store: str) -> Subject:
    """Seven batches of held-out rows, so that one rank has one more than the other."""
    truth, centre = PlantedSpec(width=16, atoms=24, active=2.0, rows=6000).truth()
    data = ActivationDataModule(store=store, batch_size=256, pool_mib=8)
    return subject_of(projections(truth, 0.4, centre), data, batch_rows=90, refit_rows=200)


def assert_close(one: object, other: object, where: str) -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_close(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}/{number}")
    elif isinstance(one, float) and isinstance(other, float):
        same = math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
        assert same or (math.isnan(one) and math.isnan(other)), where
    else:
        assert one == other, where


def test_two_ranks_find_what_one_finds(planted_store):
    Path("rank.py").write_text(RANK)
    folder, root = Path(__file__).parent, Path(atoms.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{root}", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "rank.py", str(folder), str(planted_store)]
    ranks = [
        subprocess.Popen([*words, str(rank), str(Path("meet").absolute())], env=environment, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    for process in ranks:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
    zeroth, first = (json.loads(Path(f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert_close(zeroth, first, "")
    for kind in CHECKS:
        _, section = judge(kind(subject(str(planted_store))))
        assert_close(zeroth[kind.name]["numbers"], section.numbers, kind.name)
        assert_close(zeroth[kind.name]["tables"], section.tables, kind.name)
        assert [claim["verdict"] for claim in zeroth[kind.name]["claims"]] == [c.verdict for c in section.claims]
        assert zeroth[kind.name]["notes"] == list(section.notes)


def test_a_rank_without_a_batch_takes_part(planted_store):
    """Before any batch a check can be computed, as on a rank that has none."""
    for kind in CHECKS:
        check = kind(subject(str(planted_store)))
        show(check, splits=())
        assert not check.report({kind.name: check.compute()}).numbers.get("rows", 0.0) or kind is Shift
