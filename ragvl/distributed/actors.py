"""Work on blocks in order by processes of a cluster, each of which loads its models once."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ragvl.blocks import Done, MapBlocks, Works
from ragvl.distributed.session import ClusterError
from ragvl.distributed.worker import BlockWorker, load_works, sent, versions
from ragvl.extras import extra

with extra("ray", "ray"):
    import ray

logger = logging.getLogger(__name__)

Load = Callable[[], Works]

_BLOCKS_EACH = 2  # of an actor: one that it works on, and the next
_BLOCKS_KEPT = 4  # for each actor, of which results wait for an earlier one's
_PATIENCE_SECONDS = 120.0
_TRIES_MORE = 3  # of a block whose actor was lost: it may be the block that kills them


@contextmanager
def actor_map(works: Works, *, device: str, max_actors: int | None = None) -> Iterator[MapBlocks]:
    """A `MapBlocks` of as many actors as the cluster has room for, for the time of a block.

    An actor that is lost is replaced, and its blocks are done again.

    Args:
        works: what an actor does; sent pickled, which a reranker or a generator is by the folder
            or hub id that it was loaded from.
        device: "cpu" for an actor on as many cores as this process has threads, so that bits are
            the same; any other for one on each GPU.
        max_actors: no more.

    Raises:
        ClusterError: there is no room for one, or a block's actor was lost again and again.
        VersionMismatchError: an actor's node has other versions than this process.
        OSError, ValueError: a model is not there, or another; the message names the node.
    """
    count, resources = _room(device)
    # Made anew however often a machine is taken away
    options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": _TRIES_MORE}
    worker = ray.remote(**options, **resources)(BlockWorker)
    read = partial(sent, ray.put(ray.cloudpickle.dumps(dict(works))))
    load = partial(load_works, read, versions(), torch.get_num_threads())
    actors = [worker.remote() for _ in range(min(count, max_actors or count))]
    try:
        _wait_until_ready(actors, load)
        yield partial(_map_blocks, actors, load)
    finally:
        for actor in actors:
            ray.kill(actor)


def _wait_until_ready(actors: Sequence[Any], load: Load) -> None:
    """Has all load their models, so that what cannot be used is refused before the work."""
    loading = [actor.ready.remote(load) for actor in actors]
    _, waiting = ray.wait(loading, num_returns=len(loading), timeout=_PATIENCE_SECONDS)
    if waiting:
        logger.warning(
            "%d of %d actors still load their models, or have no room beside the cluster's others",
            len(waiting),
            len(actors),
        )
    ray.get(loading)


def _room(device: str) -> tuple[int, dict[str, int]]:
    """How many actors there is room for, and what each gets.

    Raises:
        ClusterError: there is room for none.
    """
    if device != "cpu":
        if not (gpus := int(ray.cluster_resources().get("GPU", 0))):
            raise ClusterError(f"the cluster has no GPU, and the models are on {device!r}")
        return gpus, {"num_cpus": 1, "num_gpus": 1}
    threads = torch.get_num_threads()
    nodes: Iterable[Mapping[str, Any]] = ray.nodes()
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    if count := sum(own // threads for own in cores):
        return count, {"num_cpus": threads}
    raise ClusterError(
        f"no node of the cluster has {threads} cores, as many as torch takes here: set "
        "OMP_NUM_THREADS to fewer"
    )


def _map_blocks(actors: list[Any], load: Load, work: str, blocks: Iterable[Any]) -> Iterator[Done]:
    """See `MapBlocks`."""
    free = deque(actors * _BLOCKS_EACH)
    at_work: dict[Any, Any] = {}  # actors by what they will return
    order: deque[Any] = deque()

    def wait(results: list[Any]) -> None:
        done, _ = ray.wait(results)
        free.extend(at_work.pop(one) for one in done)

    for block in blocks:
        actor = free.popleft()
        order.append(actor.do.remote(load, work, block))
        at_work[order[-1]] = actor
        if not free:
            wait(list(at_work))
        while order and (order[0] not in at_work or len(order) > _BLOCKS_KEPT * len(actors)):
            if order[0] in at_work:
                wait([order[0]])
            yield ray.get(order.popleft())
    while order:
        yield ray.get(order.popleft())
