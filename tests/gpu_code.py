"""Compiles Triton kernels without a GPU: the interpreter accepts what the compiler does not."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


@functools.cache
def _compiler() -> ProcessPoolExecutor:
    """A process of its own, since here TRITON_INTERPRET is set; one, since importing takes long."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_do_not_interpret)


def _do_not_interpret() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


def _compile(module: str, name: str, types: dict[str, str], constants: dict[str, object]) -> bytes:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"ragvl.kernels.{module}"), name)
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


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
    name = kernel or f"_{operation}_fwd_kernel"
    assert _compiler().submit(_compile, operation, name, by_name, constants).result()
