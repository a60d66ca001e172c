"""On a CPU a row of a product has bits of its own, however many rows there are."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import write_model
from plain import picture
from shapes import Decoder, Shape, Vision
from torch import nn

from ragvl import Document, Reranker
from ragvl.mllm import MLLM, products
from ragvl.mllm.products import RowLinear, keep_rows_apart, warn_of_mixed_rows
from ragvl.ops import bfloat16_linear
from ragvl.ops.bfloat16_linear import is_fast_here

# Wide enough that a library chooses how to multiply by the number of rows
WIDE = Shape(
    "llava",
    Decoder(512, 1536, 2, 8, 8, 64, 1024, tied=True),
    Vision(320, 1280, num_layers=1, num_heads=5),
    image_tokens=64,
    initializer_range=0.05,
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    write_model(folder, WIDE)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_score_has_the_same_bits_in_any_company(
    dtype: str, wide: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranker.from_pretrained(wide, device="cpu", dtype=dtype, prefix_cache="64MiB")
    documents = [Document(picture(number), caption="a" * number) for number in range(9)]
    for question in ("What color is it?", "Is the tower taller than the house beside it?"):
        pairs = [(question, document) for document in documents]
        scores = reranker.score(pairs, progress=False)
        for size in (1, 2, 5):
            parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
            apart = torch.cat([reranker.score(part, progress=False) for part in parts])
            assert torch.equal(apart, scores), size
        cold = Reranker(reranker.mllm, prefix_cache=None)
        assert torch.equal(cold.score(pairs, progress=False), scores)
    assert "mix rows" not in caplog.text


def test_products_in_float32_keep_rows_apart_from_the_first_one_on() -> None:
    """In a process of its own, which has multiplied nothing before."""
    code = """
import ragvl, torch
torch.manual_seed(0)
for inputs, outputs in [(1536, 512), (896, 4864), (4864, 896)]:
    product, x = torch.nn.Linear(inputs, outputs, bias=False), torch.randn(20 * 32, inputs)
    with torch.inference_mode():
        alone = torch.cat([product(block) for block in x.split(32)])
        for blocks in (2, 3, 5, 7, 20):
            assert torch.equal(product(x[: 32 * blocks]), alone[: 32 * blocks]), (inputs, blocks)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_setting_of_mkls_that_is_there_stays() -> None:
    code = "import ragvl, os; print(os.environ['MKL_CBWR'])"
    given = subprocess.run(
        [sys.executable, "-c", code],
        env={"MKL_CBWR": "COMPATIBLE", "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    assert given.stdout.strip() == "COMPATIBLE"


def kinds(mllm: MLLM) -> set[type]:
    return {type(module) for module in mllm.model.modules() if isinstance(module, nn.Linear)}


def test_products_are_replaced_where_torchs_mix_rows(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's name is the same on a CPU that needs no replacement."""
    here = MLLM.from_pretrained(wide, device="cpu", dtype="bfloat16")
    assert kinds(here) == {RowLinear if is_fast_here() else nn.Linear}
    monkeypatch.setenv("RAGVL_CPU_ISA", "baseline")
    elsewhere = MLLM.from_pretrained(wide, device="cpu", dtype="bfloat16")
    assert kinds(elsewhere) == {nn.Linear}
    assert elsewhere.fingerprint == here.fingerprint


def test_a_replaced_product_computes_and_learns_as_before() -> None:
    torch.manual_seed(0)
    product = nn.Linear(48, 20, dtype=torch.bfloat16)
    x = torch.randn(40, 48, dtype=torch.bfloat16)
    expected = product(x)
    expected.sum().backward()
    gradient = product.weight.grad.clone()
    product.weight.grad = None
    product.__class__ = RowLinear
    given = product(x)
    assert torch.equal(given, expected), "with a gradient it is torch's own"
    given.sum().backward()
    assert torch.equal(product.weight.grad, gradient)
    with torch.inference_mode():
        own = bfloat16_linear(x, product.weight, product.bias)
        assert torch.equal(product(x), own)
        compiled = torch.compile(product, backend="eager", fullgraph=True)(x)
        assert torch.equal(compiled, expected), "compiled it is torch's own"
        assert product.float()(x.float()).dtype == torch.float32


class _Mixed(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.mean()


def test_products_that_mix_rows_are_named_once(
    wide: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MLLM.from_pretrained(wide, device="cpu", dtype="float32").model
    products._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        warn_of_mixed_rows(model)
        assert not caplog.records
        layer = next(m for m in model.modules() if type(m).__name__.endswith("DecoderLayer"))
        monkeypatch.setattr(products, "RowLinear", _Mixed)
        layer.mlp.down_proj.__class__ = _Mixed
        warn_of_mixed_rows(model)
        warn_of_mixed_rows(model)
    (record,) = caplog.records
    assert "products in float32 mix rows on this CPU" in record.getMessage()
    assert "MKL_CBWR=AUTO,STRICT" in record.getMessage()
    products._warn_once.cache_clear()


class _Wrapped(torch.Tensor):
    """A weight without memory of its own, as packages that quantise have them."""

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> _Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} reads a weight that has no memory")


def test_a_weight_of_a_package_is_left_to_it() -> None:
    class Model(nn.Module):
        device, dtype = torch.device("cpu"), torch.bfloat16

    model = Model()
    model.plain, model.wrapped = (nn.Linear(4, 4, dtype=torch.bfloat16) for _ in range(2))
    weight = _Wrapped(model.wrapped.weight.detach())
    model.wrapped._parameters["weight"] = weight  # as a parameter it would be detached
    keep_rows_apart(model)  # type: ignore[arg-type]
    assert type(model.wrapped) is nn.Linear
    assert type(model.plain) is (RowLinear if is_fast_here() else nn.Linear)
    with pytest.raises(TypeError, match="weight must hold its own values, and _Wrapped does not"):
        bfloat16_linear(torch.ones(2, 4, dtype=torch.bfloat16), weight)


@pytest.mark.skipif(not is_fast_here(), reason="this CPU has no AMX")
def test_of_a_mixtures_experts_a_warning_tells(
    tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = MLLM.from_pretrained(tiny_model("qwen3_vl_moe"), device="cpu", dtype="bfloat16").model
    products._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        warn_of_mixed_rows(model)
    assert "products in bfloat16 mix rows" in caplog.text
    assert "MKL_CBWR" not in caplog.text
    products._warn_once.cache_clear()
