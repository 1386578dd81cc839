"""What is measured on rows the model was not fitted on: fidelity, sparsity, stability and recovery."""

from atoms.metrics.q_star import QStar, Reading, q_star, q_star_null, quantile_curve, random_cosine_density
from atoms.metrics.reconstruction import ReconstructionR2, reconstruction_r2
from atoms.metrics.recovery import Recovery, planted_recovery
from atoms.metrics.sparsity import SparsityCounts, SparsityProfile, sparsity_profile

__all__ = [
    "QStar",
    "Reading",
    "ReconstructionR2",
    "Recovery",
    "SparsityCounts",
    "SparsityProfile",
    "planted_recovery",
    "q_star",
    "q_star_null",
    "quantile_curve",
    "random_cosine_density",
    "reconstruction_r2",
    "sparsity_profile",
]
