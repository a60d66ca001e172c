"""Compiles Triton kernels without a GPU: the interpreter accepts what the compiler does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

# In a process of its own, since here TRITON_INTERPRET is set
_PROGRAM = """
import importlib, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

module, name, types, constants = json.loads(sys.argv[1])
kernel = getattr(importlib.import_module(f"ragvl.kernels.{module}"), name)
signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
source = ASTSource(kernel, signature, constexprs=constants)
assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def compile_for_a_gpu(
    operation: str,
    types: dict[str, str],
    constants: dict[str, int | str | bool | None],
    kernel: str | None = None,
) -> None:
    """Compiles kernels/<operation>.py for Hopper; an error where Triton refuses it.

    Args:
        operation: the module's name.
        types: of the kernel's arguments, by their names; names of one type stand together.
        constants: the other arguments; None for what is absent.
        kernel: its name, if not `_<operation>_fwd_kernel`.
    """
    by_name = {name: type_ for names, type_ in types.items() for name in names.split()}
    arguments = json.dumps([operation, kernel or f"_{operation}_fwd_kernel", by_name, constants])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", _PROGRAM, arguments], check=True, env=environment)
