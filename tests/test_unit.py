"""What all units share: decoding, and being held to their site."""

import pytest
import torch

from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.sae import SparseCodes
from atoms.units import Unit


class Fixed(Unit):
    def __init__(self, width, site=None, dtype=torch.float32):
        self.name, self.site = "fixed", site
        generator = torch.Generator().manual_seed(0)
        self.atoms = torch.randn(7, width, generator=generator, dtype=dtype)
        self.centre = torch.randn(width, generator=generator)

    def encode(self, rows):
        return SparseCodes.from_dense(rows @ self.atoms.float().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoding_is_the_sum_of_atoms_about_the_centre(dtype):
    unit = Fixed(5, dtype=dtype)
    dense = torch.randn(9, 7) * (torch.rand(9, 7) < 0.4)
    dense[3] = 0  # a row without any atom is the centre
    found = unit.decode(SparseCodes.from_dense(dense))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (dense.double() @ unit.atoms.double()).float() + unit.centre)
    assert torch.equal(found[3], unit.centre)


def test_a_unit_is_held_to_its_site_and_width(planted_data):
    rows = SiteRows(planted_data(), "planted", "train")
    unit = Fixed(16)
    unit.fit(rows)
    assert (unit.site, unit.reads) == ("planted", "planted")
    with pytest.raises(AtomsError, match=r"^unit fixed is of site other, not of planted: judge it on its own site$"):
        Fixed(16, "other").fit(rows)
    with pytest.raises(AtomsError, match=r"^unit fixed has width 5, but planted has 16: "):
        Fixed(5).fit(rows)


def test_a_unit_moves_with_all_its_tensors():
    unit = Fixed(5)
    assert unit.to(torch.device("meta")) is unit
    assert unit.atoms.is_meta
    assert unit.centre.is_meta
