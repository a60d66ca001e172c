"""The runner of the tests that need a GPU: what it counts, and when its time is up."""

from __future__ import annotations

from pathlib import Path

import gpu_tests
import pytest

TESTS = """
import time

import pytest

pytestmark = pytest.mark.gpu

def test_gpu_passes(): pass
def test_gpu_fails(): assert False
@pytest.mark.skip
def test_gpu_is_skipped(): pass
def test_gpu_takes_long(): time.sleep({seconds})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n")
    return tmp_path


@pytest.mark.slow
def test_everything_is_counted(folder: Path) -> None:
    (folder / "test_all.py").write_text(TESTS.format(seconds=0))
    tests = gpu_tests.run_tests([str(folder)], 300)
    assert [tests[kind] for kind in ("tests", "failures", "errors", "skipped")] == [4, 1, 0, 1]
    assert tests["failed"] == ["test_all::test_gpu_fails"]
    (goal,) = gpu_tests.goals("ops", tests)
    assert (goal["value"], goal["reached"]) == (1, False)


@pytest.mark.slow
def test_when_the_time_is_up_it_says_so(folder: Path) -> None:
    (folder / "test_slow.py").write_text(TESTS.format(seconds=600))
    tests = gpu_tests.run_tests([str(folder)], 0.1)
    assert "stopped after" in tests["problem"]
    (goal,) = gpu_tests.goals("ops", tests)
    assert not goal["reached"]
