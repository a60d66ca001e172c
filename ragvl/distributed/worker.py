"""What every worker does before it works: versions, device, models, errors that name the node."""

from __future__ import annotations

import os
import pickle
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ragvl.blocks import Done, Works, timed
from ragvl.identity import library_versions

if TYPE_CHECKING:
    import ray


class VersionMismatchError(ValueError):
    """A worker has other versions than the driver; the message names the node and each of them."""


def versions() -> dict[str, str]:
    """Here: Python's, ragvl's, torch's, transformers' and those of what prepares inputs."""
    return {"python": platform.python_version(), **library_versions()}


def check_versions(expected: Mapping[str, str]) -> None:
    """Refuses to work with other versions than those of the driver, which may change scores' bits.

    Raises:
        VersionMismatchError: a version here is another.
    """
    here = versions()
    names = [name for name in {**expected, **here} if expected.get(name) != here.get(name)]
    if names:
        differences = ", ".join(
            f"{name} {here.get(name, 'is missing')} (the driver's is {expected.get(name, 'none')})"
            for name in names
        )
        raise VersionMismatchError(f"node {_node_name()} has other versions: {differences}")


@contextmanager
def loading(expected: Mapping[str, str] | None) -> Iterator[None]:
    """The time in which a worker loads its model.

    Args:
        expected: the driver's versions; None to take any.

    Raises:
        VersionMismatchError: versions differ.
        OSError: a model is not there; the message names the node.
        ValueError: it is another, or of another kind; the message names the node.
    """
    if expected is not None:
        check_versions(expected)
    try:
        yield
    except OSError as error:
        raise OSError(f"on node {_node_name()}: {error}") from error
    except ValueError as error:
        raise ValueError(f"on node {_node_name()}: {error}") from error


def load_works(read: Callable[[], bytes], versions: Mapping[str, str], num_threads: int) -> Works:
    """What a process is to do with blocks.

    Args:
        read: gives the works, pickled; models in them are loaded by being unpickled.
        versions: the driver's.
        num_threads: of torch, as many as the driver has, since bits may depend on it.

    Raises:
        VersionMismatchError, OSError, ValueError: see `loading`.
    """
    with loading(versions):
        works: Works = pickle.loads(read())
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(num_threads)
    return works


class BlockWorker:
    """Does blocks of work in an actor, with models that it loads once.

    It is made of nothing, so that Ray can make a lost one anew, which then loads them again.
    """

    def __init__(self) -> None:
        self._works: Works | None = None

    def ready(self, load: Callable[[], Works]) -> None:
        """Loads what it has not loaded; errors are those of `load`."""
        self._loaded(load)

    def do(self, load: Callable[[], Works], work: str, block: Any) -> Done:
        """What a work makes of a block."""
        return timed(self._loaded(load)[work], block)

    def _loaded(self, load: Callable[[], Works]) -> Works:
        if self._works is None:
            self._works = load()
        return self._works


def sent(reference: ray.ObjectRef) -> bytes:
    """In an actor, what the driver has put under a reference."""
    import ray

    # Before transformers is imported, whose bars would come among the driver's
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    given: bytes = ray.get(reference)
    return given


def assigned_device(device: Any = "auto") -> Any:
    """The device to work on: of "auto" in a worker of Ray's a GPU if it was given one, else none.

    Ray shows a worker its own GPUs only, so that "cuda" is the first of those.
    """
    ray = sys.modules.get("ray")
    if device != "auto" or ray is None or not ray.is_initialized():
        return device
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return device
    return "cuda" if context.get_accelerator_ids().get("GPU") else "cpu"


def _node_name() -> str:
    """What to call this machine in a message: its name, and its address in the cluster."""
    name = platform.node()
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return name
    return f"{name} ({ray.util.get_node_ip_address()})"
