"""One Ray of two cores for all tests, and a few documents that they are about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from data_files import write_picture

COLORS = ("red", "green", "blue", "white", "black", "orange", "purple", "gray")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A local Ray, to which the process is connected; or with RAY_ADDRESS the one that is there."""
    ray = pytest.importorskip("ray")
    data = pytest.importorskip("ray.data")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # Sockets lie in its folder, and may not have long names
    with pytest.MonkeyPatch.context() as environment, TemporaryDirectory(dir="/tmp") as folder:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_worker_niceness", "0")  # 15 would wait for all else on busy cores
        for check in ("READY", "HEALTH"):  # of Serve's proxy, which may wait for a core
            environment.setenv(f"RAY_SERVE_PROXY_{check}_CHECK_TIMEOUT_S", "60")
        if "RAY_ADDRESS" in os.environ:
            ray.init(**quiet)
        else:
            own: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 150_000_000}
            ray.init(include_dashboard=False, _temp_dir=folder, **own, **quiet)
        data.DataContext.get_current().enable_progress_bars = False
        try:
            yield ray
        finally:
            ray.shutdown()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of one color each; do not write into their folder."""
    folder = tmp_path_factory.mktemp("pictures")
    return [write_picture(folder / f"{color}.png", color) for color in COLORS]
