from __future__ import annotations

cuda_architectures: str  # what the CUDA kernels were compiled for; "" in a build without CUDA

def cuda_problem() -> str | None: ...  # absent in a build without CUDA, as are all *_cuda functions
def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...

# Addresses are tensor.data_ptr(), or 0 for an absent tensor.
class RelevanceHeadParams:
    def __init__(
        self,
        *,
        hidden: int,
        row_stride: int,
        last_index: int,
        norm_weight: int,
        norm_bias: int,
        head_rows: int,
        head_bias: int,
        logits: int,
        relevance: int,
        rows: int,
        batch: int,
        dim: int,
        num_head_rows: int,
        num_yes: int,
        eps: float,
        softcap: float,
        dtype: str,
        norm: str,
    ) -> None: ...

def relevance_head_cpu(params: RelevanceHeadParams, threads: int) -> None: ...
def relevance_head_cuda(params: RelevanceHeadParams, stream: int) -> None: ...
