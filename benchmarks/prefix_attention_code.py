"""What prefix_attention's Triton kernel compiles to, for a GPU that need not be here.

    python benchmarks/prefix_attention_code.py [architecture]

One line for each case and its sizes (rows x keys x stages of loads x warps): the instruction that
multiplies, registers of a thread and bytes of them that spill, shared memory of a program, and how
many programs fit on one multiprocessor. A star marks the sizes that the launcher takes
(`launch_sizes` in kernels/prefix_attention.py).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
import triton
from ragvl.kernels.prefix_attention import _prefix_attention_fwd_kernel, launch_sizes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ragvl.compression import page_tokens

_TYPES = {
    **{"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"},
    **{"int8": "*i8", "int4": "*u8"},
}
_SCALES = {"int8": "*fp32", "int4": "*fp16"}
_REGISTERS = 1 << 16  # of a multiprocessor
_SHARED = {80: 164, 90: 228, 100: 228, 120: 100}  # KiB of a multiprocessor, by architecture


@dataclass(frozen=True)
class Variant:
    """What the kernel is compiled for; `pages` is `dtype`, "int8" or "int4"."""

    dtype: str
    pages: str
    dim: int
    last_only: bool = False
    group: int = 7
    sliding_window: bool = False

    def sizes(self) -> dict[str, int]:
        """Those of the launcher."""
        return launch_sizes(
            getattr(torch, self.dtype),
            self.dim,
            last_only=self.last_only,
            compressed=self.pages in _SCALES,
            int4_page=page_tokens("int4") if self.pages == "int4" else None,
        )


def compiled(variant: Variant, sizes: dict[str, int] | None = None, architecture: int = 90) -> Any:
    """The kernel of triton, as a launch with aligned tensors would compile it."""
    kernel, sizes = _prefix_attention_fwd_kernel, sizes or variant.sizes()
    signature = dict.fromkeys(kernel.arg_names, "constexpr")
    for name in ("q", "k", "v", "out"):
        signature[name] = _TYPES[variant.dtype]
    for name in ("key_pages", "value_pages"):
        signature[name] = _TYPES[variant.pages]
    for name in ("page_table", "prefix_lengths", "suffix_starts", "suffix_lengths"):
        signature[name] = "*i32"
    strides = [name for name in kernel.arg_names if name.endswith("_stride")]
    signature |= dict.fromkeys(strides, "i32") | {"table_width": "i32", "scale": "fp32"}
    constants = {
        "KV_HEADS": 2,
        "GROUP": variant.group,
        "DIM": variant.dim,
        "PAGE_SIZE": page_tokens("int4" if variant.pages == "int4" else None),
        "LAST_ONLY": variant.last_only,
        "BLOCK_ROWS": sizes["BLOCK_ROWS"],
        "BLOCK_KEYS": sizes["BLOCK_KEYS"],
        "BLOCK_DIM": max(16, triton.next_power_of_2(variant.dim)),
    }
    for names, type_, present in (
        (("key_scales", "value_scales"), _SCALES.get(variant.pages), variant.pages in _SCALES),
        (("key_minima", "value_minima"), "*fp16", variant.pages == "int4"),
        (("sliding_window",), "i32", variant.sliding_window),
    ):
        signature |= dict.fromkeys(names, type_ if present else "constexpr")
        constants |= {} if present else dict.fromkeys(names)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name in strides or signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {name: sizes[name] for name in ("num_stages", "num_warps")}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def multiplies_with(kernel: Any) -> str:
    """The instruction that takes the products."""
    for instruction in ("wgmma", "tcgen05.mma", "mma.sync"):
        if instruction in kernel.asm["ptx"]:
            return instruction
    return "fma"


def main(architecture: int = 90) -> None:
    """Prints the table."""
    columns = "{:>9} {:>9} {:>4} {:>5}  {:<18} {:>11} {:>9} {:>7} {:>7} {:>8}"
    print(
        columns.format(
            *("dtype", "pages", "dim", "last", "sizes", "product", "registers"),
            *("spilled", "shared", "programs"),
        )
    )
    for pages in ("bfloat16", "int8", "int4"):
        for dim in (64, 128, 256):
            for last_only in (False, True):
                variant = Variant("bfloat16", pages, dim, last_only)
                chosen = variant.sizes()
                for sizes in _candidates(chosen, page_tokens("int4") if pages == "int4" else 64):
                    print(columns.format(*_row(variant, sizes, chosen, architecture)), flush=True)


def _candidates(chosen: dict[str, int], most_keys: int) -> list[dict[str, int]]:
    """The sizes to compare: with and without the rows that wgmma needs, and the chosen ones."""
    shapes = {
        (rows, min(keys, most_keys)) for rows, keys in ((16, 64), (32, 64), (64, 32), (64, 64))
    }
    candidates = [
        {"BLOCK_ROWS": rows, "BLOCK_KEYS": keys, "num_stages": 2, "num_warps": 4}
        for rows, keys in sorted(shapes)
    ]
    return [*(sizes for sizes in candidates if sizes != chosen), chosen]


def _row(
    variant: Variant, sizes: dict[str, int], chosen: dict[str, int], architecture: int
) -> list[Any]:
    kernel = compiled(variant, sizes, architecture)
    registers, spilled = _registers(kernel)
    shared, threads = kernel.metadata.shared, 32 * sizes["num_warps"]
    # Registers are given out in portions of eight; a kibibyte of each program's memory is reserved
    by_registers = _REGISTERS // (-(-registers // 8) * 8 * threads)
    by_memory = 1024 * _SHARED[architecture] // (shared + 1024)
    shape = "{BLOCK_ROWS} x {BLOCK_KEYS} x {num_stages} x {num_warps}".format_map(sizes)
    return [
        *(variant.dtype, variant.pages, variant.dim, "yes" if variant.last_only else "no"),
        shape + (" *" if sizes == chosen else ""),
        *(multiplies_with(kernel), registers, spilled, shared, min(by_registers, by_memory)),
    ]


def _registers(kernel: Any) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, which holds what spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = (re.search(rf"{name}:(\d+)", usage) for name in ("REG", "STACK"))
    assert registers and stack
    return int(registers[1]), int(stack[1])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
