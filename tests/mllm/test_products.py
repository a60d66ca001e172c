"""On a CPU a row of a product has bits of its own, however many rows there are."""

from __future__ import annotations

import logging
import subprocess
import sys
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
    subprocess.run([sys.executable, "-c", code], check=True)


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


def test_products_of_bfloat16_are_replaced_where_torchs_mix_rows(wide: Path) -> None:
    products_of = [
        module
        for module in MLLM.from_pretrained(wide, device="cpu", dtype="bfloat16").model.modules()
        if isinstance(module, nn.Linear)
    ]
    expected = RowLinear if is_fast_here() else nn.Linear
    assert {type(product) for product in products_of} == {expected}
    float32 = MLLM.from_pretrained(wide, device="cpu", dtype="float32").model
    assert not any(isinstance(module, RowLinear) for module in float32.modules())


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
        assert torch.equal(product(x), bfloat16_linear(x, product.weight, product.bias))
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


def test_nothing_is_replaced_on_other_devices_and_in_other_dtypes() -> None:
    product = nn.Linear(4, 4)

    class Model(nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

    model = Model()
    model.product = product
    keep_rows_apart(model)  # type: ignore[arg-type]
    assert type(product) is nn.Linear
