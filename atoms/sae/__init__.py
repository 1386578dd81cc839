"""Sparse autoencoders: model, objective, control and training step, in plain PyTorch."""

from atoms.sae.activation import Activation
from atoms.sae.artefact import FoldedSAE
from atoms.sae.control import Control
from atoms.sae.model import ThresholdSAE
from atoms.sae.objective import Objective, default_lr, learning_rate_factor, parameter_groups
from atoms.sae.shard import Shard
from atoms.sae.sparse_codes import SparseCodes
from atoms.sae.step import StepOutput, eager_step

__all__ = [
    "Activation",
    "Control",
    "FoldedSAE",
    "Objective",
    "Shard",
    "SparseCodes",
    "StepOutput",
    "ThresholdSAE",
    "default_lr",
    "eager_step",
    "learning_rate_factor",
    "parameter_groups",
]
