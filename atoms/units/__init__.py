"""Anything that may claim to be atoms of a site, under one protocol."""

from atoms.units.pretrained import PretrainedUnits
from atoms.units.unit import Unit

__all__ = ["PretrainedUnits", "Unit"]
