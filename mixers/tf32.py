"""TF32: whether products of float32 tensors on CUDA may be made of 10 bits of mantissa."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# torch has two interfaces. Who sets by the newer one (`fp32_precision`, from 2.9) makes everything that reads the older
# one raise; who sets by the older one disturbs nobody. So the older one is set here, and either is read.


def tf32_allowed() -> bool:
    """Whether torch may multiply matrices so; our Triton kernels do as it does."""
    matmul: Any = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within, whether matrix products and convolutions may use TF32.

    cuDNN's own default would allow it, even where matrix products are IEEE float32. Only torch's and its libraries'
    kernels obey, and ours; another library's Triton kernel says for itself how it multiplies.
    """
    matmul, convolution = _set_precisions()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def _set_precisions() -> tuple[str, bool]:
    """Of matrix products, and whether convolutions may."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # set by the newer interface
        convolution: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        return "high" if tf32_allowed() else "highest", convolution.fp32_precision == "tf32"
