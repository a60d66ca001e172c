"""A Ray cluster for the time of some work, and its errors by name."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ragvl.distributed.worker import check_versions, versions
from ragvl.extras import extra
from ragvl.messages import MAX_ERROR, quoted, reason

with extra("ray", "ray"):
    import ray
    import ray.exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_OWN_VARIABLES = "RAGVL_"  # which workers get, too
_REACHABLE_SECONDS = 20.0


class ClusterError(OSError):
    """The cluster cannot be reached, or cannot do the work; the message says why."""


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """A cluster to work on, for the time of a block; one that the caller has connected to stays.

    Args:
        address: a cluster's; None for that of `RAY_ADDRESS`, or else a cluster of this machine's
            cores, which ends with the block.

    Raises:
        ClusterError: there is no such cluster, or it runs another Ray or Python.
        VersionMismatchError: a node has other versions of ragvl, torch or transformers.
    """
    with named_errors():
        if ray.is_initialized():
            check_nodes()
            yield
            return
        own = {name: value for name, value in os.environ.items() if name.startswith(_OWN_VARIABLES)}
        where = address or os.environ.get("RAY_ADDRESS", "")
        if not where:  # Ray's 15 would have workers wait for all else on this machine
            os.environ.setdefault("RAY_worker_niceness", "0")
        try:
            _check_reachable(where)
            ray.init(
                address,
                include_dashboard=False,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": own} if own else None,
            )
        except (OSError, RuntimeError, ValueError) as error:
            named = quoted(where) if where else "of this machine"
            raise ClusterError(f"no work on the cluster {named}: {reason(error)}") from error
        try:
            check_nodes()
            yield
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuses an address where nobody listens, which Ray would try for minutes.

    Raises:
        OSError: it is one.
    """
    if found := re.fullmatch(r"(?:ray://)?(?:\[(.+)\]|([^:]+)):(\d+)", address):
        host = found[1] or found[2]
        with socket.create_connection((host, int(found[3])), timeout=_REACHABLE_SECONDS):
            pass


def check_nodes() -> None:
    """Refuses a cluster before it works if a node has other versions than this process.

    Raises:
        VersionMismatchError: a node has; the message names it, and the versions.
    """
    check = ray.remote(num_cpus=0)(check_versions)
    here = versions()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    each = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    ray.get([check.options(scheduling_strategy=one).remote(here) for one in each])


@contextmanager
def named_errors() -> Iterator[None]:
    """Errors of workers as what they were there, and Ray's own as one line.

    Raises:
        ClusterError: of one of Ray's own.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ray.exceptions.RayError) or cause is None:
            raise ClusterError(reason(error, MAX_ERROR)) from error
        raise cause from error
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        raise ClusterError(
            "the cluster's object store is full, and so is the disk that it spills to: "
            f"{reason(error)}"
        ) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the cluster cannot do the work: {reason(error, MAX_ERROR)}") from error
