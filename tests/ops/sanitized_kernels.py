"""Each CUDA kernel on few elements, whole vectors and odd ends, in every dtype.

What compute-sanitizer watches; see test_sanitizer.py.
"""

from __future__ import annotations

from itertools import product

import torch

from ragvl.ops import diffusion_noise, relevance_head


def main() -> None:
    for dtype, dim in product((torch.float32, torch.bfloat16, torch.float16), (64, 7)):
        hidden = torch.randn(9, dim, device="cuda").to(dtype)
        last_index = torch.tensor([0, 3, 8], device="cuda")
        head = torch.randn(3, dim, device="cuda")
        weight = torch.ones(dim, device="cuda")
        relevance_head(hidden, last_index, weight, head, num_yes=2, backend="cuda")
        relevance_head(hidden, last_index, None, head, norm="layer", backend="cuda")
        rows = torch.arange(9, device="cuda") % 2 == 0
        diffusion_noise(hidden, rows, seed=1, backend="cuda")
        diffusion_noise(hidden, noise=torch.randn_like(hidden), backend="cuda")
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
