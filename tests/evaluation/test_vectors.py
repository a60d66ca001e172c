"""Vectors that are kept come back to the bit, and nothing damaged is believed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ragvl.evaluation.vectors import VectorsFileError, load_vectors, save_vectors
from ragvl.files import UnusableFileError

VECTORS = {id: np.arange(3, dtype=np.float32) + place / 7 for place, id in enumerate("äbc")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "vectors.safetensors"
    save_vectors(path, VECTORS, 3)
    return path


def test_vectors_come_back(path: Path) -> None:
    loaded = load_vectors(path, 3, [*VECTORS, "d"])
    assert list(loaded) == list(VECTORS)
    assert all(np.array_equal(loaded[id], VECTORS[id]) for id in VECTORS)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    content = path.read_bytes()
    for _ in range(9):
        save_vectors(path, VECTORS, 3)
        assert path.read_bytes() == content
    save_vectors(path, {}, 3)
    assert load_vectors(path, 3, "abc") == {}


def test_any_byte_that_is_another_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:  # a name in the head that nobody reads may be another one
            loaded = load_vectors(path, 3, list(VECTORS))
        except VectorsFileError as error:
            assert str(path) in str(error)
        else:
            assert list(loaded) == list(VECTORS)
            assert all(np.array_equal(loaded[id], VECTORS[id]) for id in VECTORS)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(VectorsFileError):
            load_vectors(path, 3, list(VECTORS))


def test_what_is_no_such_file(path: Path) -> None:
    for dim, expected in ((2, VECTORS), (3, ["b", "c", "d"])):
        with pytest.raises(VectorsFileError, match="is damaged"):
            load_vectors(path, dim, list(expected))
    save_vectors(path, {"b": np.full(3, np.nan, np.float32)}, 3)
    with pytest.raises(VectorsFileError, match="not finite"):
        load_vectors(path, 3, ["b"])
    for about in ('{"ids": "{\\"b\\": 1}", "sha256": ""}', '["b"]', "{", "7"):
        save_file({"vectors": np.zeros((1, 3), np.float32)}, path, {"about": about})
        with pytest.raises(VectorsFileError):
            load_vectors(path, 3, ["b"])
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnusableFileError):
        load_vectors(path, 3, ["b"])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UnusableFileError, match="a pipe"):
        load_vectors(path, 3, ["b"])
