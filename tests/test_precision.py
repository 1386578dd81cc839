import pytest
import torch

from atoms.precision import use_fast_float32


@pytest.fixture(autouse=True)
def _restore():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_the_chosen_product_is_float32():
    use_fast_float32()
    left, right = torch.randn(300, 400), torch.randn(400, 200)
    exact = left.double() @ right.double()
    assert (left @ right - exact).norm() < 2e-6 * exact.norm()


def test_a_machine_whose_fast_product_is_bfloat16_keeps_the_exact_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plain = torch.Tensor.__matmul__

    def lossy(left, right):
        rounded = left.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
        return plain(left.bfloat16(), right.bfloat16()).float() if rounded else plain(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", lossy)
    assert use_fast_float32() == "high"
    assert torch.get_float32_matmul_precision() == "high"


def test_a_gpu_gets_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert use_fast_float32() == "high"
