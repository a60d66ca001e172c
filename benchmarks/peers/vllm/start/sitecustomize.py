"""Lets vLLM's processes import torchvision, of which PyPI has no build for torch's CPU version.

On the path of those processes alone (bench_vllm.py), vLLM starts some of its own. At its import
torchvision looks for two operators, which its compiled part would define if it could be loaded;
nothing here calls them.
"""

from __future__ import annotations

from importlib.metadata import version

if "+cpu" not in version("torchvision"):
    import torch

    # Kept in a name: what it declares goes when it goes
    DECLARED = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        DECLARED.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
