"""A certificate in words: what may be claimed, and what may not."""

from __future__ import annotations

from collections.abc import Sequence

from atoms.checks.claim import Claim, Section, Verdict


def sentence(sections: Sequence[Section], *, elsewhere: bool = False) -> str:
    """Say what may be claimed of a unit.

    Args:
        sections: All sections there are.
        elsewhere: Whether the unit learnt from another store than it is judged on.

    Returns:
        A few plain sentences; empty where the decisive claim could not be judged.
    """
    held = {section.name: section for section in sections}
    if "joint" not in held:
        return ""
    claim, numbers = held["joint"].claims[0], held["joint"].numbers
    between = "" if numbers["f_low"] != numbers["f_low"] else f" ({numbers['f_low']:.0%} to {numbers['f_high']:.0%})"
    among = ", among codes without negative coefficients" if "without negative" in claim.statement else ""
    what = (
        f"{numbers['f']:.0%}{between} of held-out rows are rebuilt within {numbers['eta']:.0%} squared error by at "
        f"most {numbers['k']:.0f} atoms in a code that is provably the only one of least l1 norm of what it "
        f"rebuilds{among}"
    )
    controls = "; ".join(f"{name}: {value:.0%}" for name, value in claim.nulls.items())
    said = {
        Verdict.GUARANTEED: f"It may be claimed that {what}. Controls stay below ({controls}).",
        Verdict.VACUOUS: f"Nothing may be claimed from it that {what}: a control earns as much ({controls}).",
    }.get(claim.verdict, f"It may not be claimed that rows decompose uniquely into few atoms: only {what}.")
    beside = _besides({f"{name}.{each.name}": each for name in held for each in held[name].claims})
    if elsewhere:
        beside.append("The unit learnt from another store, so rows held out here may be rows it has seen.")
    return " ".join([said, *beside])


def _besides(claims: dict[str, Claim]) -> list[str]:
    said = []
    memorised = claims.get("representability.memorisation")
    if memorised is not None and memorised.verdict is Verdict.REFUTED:
        said.append(f"It memorises its training rows ({memorised.why}).")
    other = claims.get("l1.only_code")
    if other is not None and other.verdict is Verdict.REFUTED and other.value is not None:
        said.append(
            f"Other atoms, no more of them, come as close to the row itself on {other.value:.0%} of the rows tried."
        )
    unique = claims.get("uniqueness.t3_median")
    if unique is not None and unique.verdict is Verdict.GUARANTEED:
        said.append("Every code of the median number of atoms is unique, whatever its atoms.")
    elif unique is not None:
        said.append(f"That every sparse code is unique, whatever its atoms, is {unique.verdict} by coherence.")
    seeds = claims.get("stability.seed_stability")
    if seeds is None:
        said.append("Stability across seeds was not measured.")
    else:
        said.append(f"Stability across seeds: {seeds.why}.")
    return said
