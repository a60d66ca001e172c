"""The table of architectures says what a model of each does now."""

from __future__ import annotations

import json

import pytest
from architectures import tried
from common import RESULTS
from tiny_models import ARCHITECTURES, MORE_ARCHITECTURES, REFUSED, WHOLE

ROWS = {
    row["architecture"]: row
    for row in json.loads((RESULTS / "architectures.json").read_text())["architectures"]
}


def test_every_tested_architecture_has_its_row() -> None:
    assert ROWS.keys() == {*ARCHITECTURES, *WHOLE, *MORE_ARCHITECTURES, *REFUSED}
    usable = (*ARCHITECTURES, *MORE_ARCHITECTURES)
    assert {ROWS[name]["kept"] for name in usable} == {"prefix"}
    one_picture = [name for name in usable if not ROWS[name]["several_pictures"]]
    assert one_picture == ["ernie4_5_vl_moe"], "its chat template numbers pictures"
    assert [ROWS[name]["kept"] for name in WHOLE] == ["features"] * len(WHOLE)
    assert [ROWS[name]["kept"] for name in REFUSED] == [None] * len(REFUSED)


@pytest.mark.parametrize("architecture", ["llava", "gemma3", "glm4v", "paligemma", "mllama"])
def test_a_row_is_what_is_found_now(architecture: str) -> None:
    assert tried(architecture) == ROWS[architecture]


def test_published_sizes_are_those_of_a_picture() -> None:
    """By hand: layers, heads and numbers a head of LLaVA-1.5-7B; squares of 28 pixels of Qwen's."""
    assert ROWS["llava"]["kv_bytes"] == 576 * 2 * 32 * 32 * 128 * 2
    assert ROWS["gemma3"]["image_tokens"] == 256
    assert ROWS["qwen2_vl"]["image_tokens"] == 23 * 17
