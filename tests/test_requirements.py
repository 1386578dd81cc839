"""What ``--require`` understands, and when it is met."""

import pytest
from certificates import certificate

from atoms.checks.claim import Verdict
from atoms.checks.requirements import Requirement, unmet
from atoms.errors import AtomsError


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("joint.atoms", True),
        ("joint.atoms=guaranteed", True),
        ("joint.atoms = vacuous", False),
        ("uniqueness.t3", False),
        ("uniqueness.t3=unattainable", True),
        ("joint.f>=0.9", True),
        ("joint/f > 0.9", False),
        ("joint.f<=1e0", True),
        ("uniqueness.mu<0.4", False),
        ("uniqueness.refit>0", False),  # it does not exist
        ("stability.matched>=0.1", False),  # it failed
        ("use.gap>=0.1", False),  # it was left out
    ],
)
def test_met_or_said(text, held):
    said = unmet(certificate(), [Requirement.parse(text)])
    assert (not said) is held
    assert all(line.startswith("unit: ") for line in said)


def test_bare_claim_must_be_guaranteed():
    assert unmet(certificate(verdict=Verdict.VACUOUS), [Requirement.parse("joint.atoms")]) == [
        "unit: joint.atoms=guaranteed: vacuous"
    ]


def test_says_the_number():
    assert unmet(certificate(f=0.25), [Requirement.parse("joint.f>=.5")]) == ["unit: joint.f>=0.5: is 0.25"]


@pytest.mark.parametrize("text", ["", "f>=1", "a.b.c", "joint.f>=much", "joint.atoms=proved", "joint.f>=nan"])
def test_what_is_no_requirement(text):
    with pytest.raises(AtomsError, match="require is "):
        Requirement.parse(text)


@pytest.mark.parametrize("text", ["joint.atom", "uniqueness.mu", "joint.g>=1", "uniqueness.t3>=1"])
def test_unknown_names_say_what_is_near(text):
    with pytest.raises(AtomsError, match=r"require names .* near are "):
        unmet(certificate(), [Requirement.parse(text)])
