"""Anything that may claim to be atoms of a site, under one protocol."""

from atoms.units.bases import PCA, WhiteningBasis
from atoms.units.classical import ICA, DictionaryLearning, KMeans
from atoms.units.controls import DataUnits, PermutedUnits, RandomUnits
from atoms.units.neurons import Neurons
from atoms.units.pretrained import PretrainedUnits
from atoms.units.pursuit import Pursuit, orthogonal_matching_pursuit, top_k_least_squares
from atoms.units.trained import TrainedUnit
from atoms.units.unit import Unit

__all__ = [
    "ICA",
    "PCA",
    "DataUnits",
    "DictionaryLearning",
    "KMeans",
    "Neurons",
    "PermutedUnits",
    "PretrainedUnits",
    "Pursuit",
    "RandomUnits",
    "TrainedUnit",
    "Unit",
    "WhiteningBasis",
    "orthogonal_matching_pursuit",
    "top_k_least_squares",
]
