"""A supply gives every prefix that can be had, holds it while it is used, and refuses the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from PIL import Image
from prefix_cache.tools import key, used_pages

from ragvl import PrefixCache
from ragvl.data.images import ImageError
from ragvl.mllm import MLLM, Prompt
from ragvl.prefix_cache import PAGE_TOKENS, PrefixSupply
from ragvl.prefix_cache.pages import num_pages, page_bytes
from ragvl.prefix_cache.supply import Block


class Picture:
    """A picture of one colour that is wanted, with text behind it."""

    def __init__(self, mllm: MLLM, number: int, *, text: str = "", broken: bool = False) -> None:
        self.name = f"picture {number}"
        self._mllm = mllm
        self._number = number
        self._text = text
        self._broken = broken

    def key(self) -> str:
        if self._broken:
            raise ImageError(f"{self.name} is broken")
        return key(self._number)

    def prefix(self) -> Prompt:
        image = self._mllm.prompting.encode_image(Image.new("RGB", (48, 48), (self._number, 0, 0)))
        prompting = self._mllm.prompting
        return prompting.encode_prompt(prompting.render(f"<image>{self._text}"), [image])


@pytest.fixture
def mllm(tiny_mllm: Callable[[str], MLLM]) -> MLLM:
    return tiny_mllm("llava")


def make_supply(mllm: MLLM, *, prefixes: int) -> tuple[PrefixSupply, int]:
    """A supply with room for so many pictures without text, and the pages of one."""
    pages = num_pages(len(Picture(mllm, 0).prefix()))
    size = prefixes * pages * page_bytes(mllm.kv_layout)
    return PrefixSupply(mllm, PrefixCache(size), exact=True), pages


def names(blocks: Sequence[Block[Picture]]) -> list[str]:
    return [one.wanted.name for block in blocks for one in block]


def test_a_block_ends_where_the_room_does(mllm: MLLM) -> None:
    supply, pages = make_supply(mllm, prefixes=3)
    device = supply._device
    sizes = []
    for _ in range(2):
        wanted = [Picture(mllm, i) for i in range(8)]
        blocks = []
        for block in supply.blocks(wanted, pytest.fail):
            assert used_pages(device) == pages * len(block), "its prefixes are held"
            blocks.append(block)
        assert used_pages(device) == 0
        assert sorted(names(blocks)) == [f"picture {i}" for i in range(8)]
        sizes += [len(block) for block in blocks]
    assert max(sizes) == 3


def test_what_cannot_be_used_is_refused_in_its_turn(mllm: MLLM) -> None:
    supply, pages = make_supply(mllm, prefixes=2)
    wanted = [
        Picture(mllm, 0),
        Picture(mllm, 1, text="x " * PAGE_TOKENS * 2 * pages),
        Picture(mllm, 2, broken=True),
        Picture(mllm, 3),
    ]
    errors: dict[str, Exception] = {}
    blocks = list(supply.blocks(wanted, lambda one, error: errors.update({one.name: error})))
    assert names(blocks) == ["picture 0", "picture 3"]
    assert [*errors] == [str(error)[:9] for error in errors.values()] == ["picture 1", "picture 2"]
    with pytest.raises(ValueError, match="picture 1: its prefix of"):
        list(supply.blocks(wanted, raise_it))


def raise_it(_: Picture, error: Exception) -> None:
    raise error


def test_equal_keys_share_one_prefix(mllm: MLLM) -> None:
    supply, _ = make_supply(mllm, prefixes=5)
    (block,) = supply.blocks([Picture(mllm, 7) for _ in range(3)], pytest.fail)
    assert len({id(one.prefix) for one in block}) == 1
    assert [one.known for one in block] == [False, False, False]
    (block,) = supply.blocks([Picture(mllm, 7)], pytest.fail)
    assert [one.known for one in block] == [True]
    warmed = [Picture(mllm, i) for i in (7, 8)]
    assert [known for *_, known in supply.warm(warmed, pytest.fail)] == [True, False]
