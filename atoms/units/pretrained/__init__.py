"""Sparse autoencoders that other libraries trained, read from their files by plain readers."""

from atoms.units.pretrained.unit import PretrainedUnits

__all__ = ["PretrainedUnits"]
