"""A certificate by hand, for those who read, draw and compare them."""

import math

from atoms.checks.certificate import Certificate, RowsRecord, UnitRecord
from atoms.checks.claim import Claim, Section, Verdict


def claim(name: str, verdict: Verdict = Verdict.GUARANTEED, **changes: object) -> Claim:
    plain = {
        "statement": f"{name} holds",
        "why": "0.1 is below 0.2",
        "source": "Towards Atoms, T3",
        "computed_on": "37 held-out rows",
        "value": 0.1,
        "threshold": 0.2,
        "inputs": {"k": 4.0},
        "nulls": {"random": 0.5},
    }
    return Claim(name=name, verdict=verdict, **{**plain, **changes})


def certificate(name: str = "unit", verdict: Verdict = Verdict.GUARANTEED, f: float = 0.9) -> Certificate:
    return Certificate(
        unit=UnitRecord(name, "TrainedUnit", "resid_post.3", 8, 32, "ab" * 32, {"checkpoint": "a.ckpt"}),
        rows=RowsRecord("store", "cd" * 32, 37, 30, 150, "ef" * 32),
        sentence="Something may be claimed.",
        sections=(
            Section("joint", "What may be claimed", {"f": f, "f_null": 0.0}, (claim("atoms", verdict, value=f),)),
            Section(
                "uniqueness",
                "Uniqueness",
                {"mu": 0.4, "refit": math.nan},
                (claim("t3", Verdict.UNATTAINABLE, value=None, threshold=None),),
                {"curve": {"q": [0.1, 0.2], "reading": ["pairs", "atoms"]}},
                ("one note",),
            ),
        ),
        settings={"eta": 0.2, "skip": ["use"], "max_k": None},
        failed={"stability": "seeds is empty: name another"},
        versions={"atoms": "0.1.0"},
        seconds={"uniqueness": 0.5},
    )
