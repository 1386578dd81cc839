"""The fastest float32 products that are still float32."""

import torch

TOLERANCE = 1e-5
"""Relative error above which a product is no longer float32: rounding gives some 1e-7, bfloat16 3e-3."""


def use_fast_float32() -> str:
    """Choose the process's float32 matrix product by measuring its error on this machine.

    On CPUs PyTorch's ``medium`` leaves MKL for oneDNN, which is up to three times as fast where MKL does not know the
    processor, and exact to float32 unless the processor multiplies bfloat16 in hardware tiles. That is measured here,
    once, and ``medium`` is used only where nothing is lost. On a GPU ``high`` (TF32) is used.

    Returns:
        The setting in force: ``medium`` or ``high``.
    """
    setting = "high"
    if not torch.cuda.is_available():
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
        torch.set_float32_matmul_precision("medium")
        exact = left.double() @ right.double()
        if (left @ right - exact).norm() <= TOLERANCE * exact.norm():
            setting = "medium"
    torch.set_float32_matmul_precision(setting)
    return setting
