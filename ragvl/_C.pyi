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

# q, k and v as (address, elements from row to row, elements from head to head)
class PrefixAttentionParams:
    def __init__(
        self,
        *,
        q: tuple[int, int, int],
        k: tuple[int, int, int],
        v: tuple[int, int, int],
        key_pages: int,
        value_pages: int,
        key_scales: int,
        value_scales: int,
        page_table: int,
        prefix_lengths: int,
        suffix_starts: int,
        suffix_lengths: int,
        out: int,
        batch: int,
        heads: int,
        kv_heads: int,
        dim: int,
        page_size: int,
        table_width: int,
        sliding_window: int,
        scale: float,
        last_only: bool,
        dtype: str,
        page_format: str,
    ) -> None: ...

def prefix_attention_cpu(params: PrefixAttentionParams, threads: int) -> None: ...

class DiffusionNoiseParams:
    def __init__(
        self,
        *,
        x: int,
        rows: int,
        noise: int,
        signal: int,
        scale: int,
        out: int,
        size: int,
        dim: int,
        item_size: int,
        seed: int,
        dtype: str,
    ) -> None: ...

def diffusion_noise_cpu(params: DiffusionNoiseParams, threads: int) -> None: ...
def diffusion_noise_cuda(params: DiffusionNoiseParams, stream: int) -> None: ...
