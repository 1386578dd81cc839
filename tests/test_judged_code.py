import pytest
import torch
from judging import Pursuer, dense, subject_of

from atoms.checks.judged_code import judged_codes
from atoms.sae import SparseCodes


def test_live_atoms_strongest_first(planted_data):
    data = planted_data()
    atoms = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    atoms[3] = 0.0
    subject = subject_of(Pursuer(atoms, data.geometry("planted"), 2), data)
    codes = torch.zeros(3, 40)
    codes[0, [1, 3, 7]] = torch.tensor([-2.0, 5.0, 0.5])
    codes[1, 9] = 1.0
    found = judged_codes(SparseCodes.from_dense(codes), subject)
    assert found.k.tolist() == found.used.tolist() == [2, 1, 0]  # an atom of zero norm is no atom
    norms = subject.norms
    strongest = sorted((1, 7), key=lambda j: -abs(codes[0, j].item()) * norms[j].item())
    assert found.support[0].tolist() == strongest
    assert found.coefficients[0].tolist() == pytest.approx([codes[0, j].item() * norms[j].item() for j in strongest])
    assert found.coefficients[1].tolist()[1:] == found.coefficients[2].tolist()[1:] == [0.0]
    assert torch.equal(found.codes.to_dense(), codes)
    assert not (found.cut | found.left_out).any()


def test_dense_codes_are_cut_where_it_is_known_to_what(planted_data):
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    rows[4, 8:] = 0.0  # half of the dimensions is not yet dense
    codes = SparseCodes.from_dense(rows)
    cut = judged_codes(codes, subject := subject_of(dense(16), planted_data(), max_k=3))
    assert cut.k.tolist() == [16] * 4 + [8]
    assert cut.used.tolist() == [3] * 4 + [8]
    assert cut.cut.tolist() == [True] * 4 + [False]
    strength = rows.double().abs() * subject.norms
    for row in range(4):
        best = strength[row].topk(3).indices
        assert cut.support[row, :3].tolist() == best.tolist()
        assert set(cut.codes.to_dense()[row].nonzero().squeeze(1).tolist()) == set(best.tolist())
    assert torch.equal(cut.codes.to_dense()[4], rows[4])

    unknown = judged_codes(codes, subject_of(dense(16), planted_data()))
    assert unknown.left_out.tolist() == [True] * 4 + [False]
    assert unknown.used.tolist() == [0] * 4 + [8]
    assert torch.equal(unknown.codes.to_dense(), rows)

    capped = judged_codes(codes, subject_of(dense(16), planted_data(), max_k=3, certified_k=7))
    assert capped.left_out.tolist() == [False] * 4 + [True]
