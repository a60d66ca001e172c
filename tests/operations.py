"""What the tests of operations share: backends with their devices, as parameters, and dtypes."""

from __future__ import annotations

import pytest
import torch

TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # interpreted on the CPU
REFERENCES = [
    pytest.param("reference", "cpu", id="reference"),
    pytest.param("reference", "cuda", id="reference-cuda", marks=pytest.mark.gpu),
]
KERNELS = [
    pytest.param("cpu", "cpu", id="cpu"),
    pytest.param("triton", TRITON_DEVICE, id="triton"),
]
BACKENDS = [*REFERENCES, *KERNELS]
# Of the operations that have a CUDA kernel beside Triton's
KERNELS_WITH_CUDA = [*KERNELS, pytest.param("cuda", "cuda", id="cuda", marks=pytest.mark.gpu)]
BACKENDS_WITH_CUDA = [*REFERENCES, *KERNELS_WITH_CUDA]
HALVES = [torch.bfloat16, torch.float16]
