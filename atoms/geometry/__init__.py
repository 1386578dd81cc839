"""The metric a language model's activations carry, and how dictionaries sit in it."""

from atoms.geometry.coherence import (
    Coherence,
    coherence,
    directions,
    largest_cosine,
    rms_cosine,
    welch,
    welch_babel,
)
from atoms.geometry.inner_product import AtomicInnerProduct
from atoms.geometry.matching import Matching, match
from atoms.geometry.moments import Moments

__all__ = [
    "AtomicInnerProduct",
    "Coherence",
    "Matching",
    "Moments",
    "coherence",
    "directions",
    "largest_cosine",
    "match",
    "rms_cosine",
    "welch",
    "welch_babel",
]
