"""Condition numbers and information in weights, and the choice of tensors that follows from them (KappaTune)."""

from atoms.conditioning.checkpoint import weights_in
from atoms.conditioning.entropy import entropy_after, gaussian_entropy, isotropic_entropy, output_entropy
from atoms.conditioning.measures import (
    channel_information,
    channel_share,
    condition_number,
    effective_rank,
    entropy_loss,
    entropy_loss_bound,
    log_volume,
    max_log_volume,
    spectral_entropy,
    tight_spectrum,
)
from atoms.conditioning.selection import Budget, Candidate, Selection, candidates_of, select
from atoms.conditioning.shape_null import ShapeNull, shape_null
from atoms.conditioning.spectrum import Spectrum, bounds, spectrum
from atoms.conditioning.survey import Condition, survey
from atoms.conditioning.weights import Weight, weights_of

__all__ = [
    "Budget",
    "Candidate",
    "Condition",
    "Selection",
    "ShapeNull",
    "Spectrum",
    "Weight",
    "bounds",
    "candidates_of",
    "channel_information",
    "channel_share",
    "condition_number",
    "effective_rank",
    "entropy_after",
    "entropy_loss",
    "entropy_loss_bound",
    "gaussian_entropy",
    "isotropic_entropy",
    "log_volume",
    "max_log_volume",
    "output_entropy",
    "select",
    "shape_null",
    "spectral_entropy",
    "spectrum",
    "survey",
    "tight_spectrum",
    "weights_in",
    "weights_of",
]
