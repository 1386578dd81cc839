"""The information lattice on finite alphabets, and when components determine what they are components of."""

from atoms.information.estimation import Estimate, FewSamplesWarning, estimate, few_samples, miller_madow, unseen
from atoms.information.lattice import (
    bottom,
    complement,
    determines,
    equivalent,
    independent,
    join,
    meet,
    top,
)
from atoms.information.measures import (
    conditional_entropy,
    dependency_coefficient,
    entropy,
    mutual_information,
    rajski_distance,
    redundancy,
    shannon_distance,
)
from atoms.information.reconstruction import Problem, Reconstruction, Verdict, perfect_reconstruction
from atoms.information.variable import SampleSpace, Variable, from_samples, from_table

__all__ = [
    "Estimate",
    "FewSamplesWarning",
    "Problem",
    "Reconstruction",
    "SampleSpace",
    "Variable",
    "Verdict",
    "bottom",
    "complement",
    "conditional_entropy",
    "dependency_coefficient",
    "determines",
    "entropy",
    "equivalent",
    "estimate",
    "few_samples",
    "from_samples",
    "from_table",
    "independent",
    "join",
    "meet",
    "miller_madow",
    "mutual_information",
    "perfect_reconstruction",
    "rajski_distance",
    "redundancy",
    "shannon_distance",
    "top",
    "unseen",
]
