"""Which replicas live, as request routers of this process are told by Ray Serve.

A module of its own: Serve sends the module of a request router by value, so that what it held would
be another in each process that unpacks it.
"""

from __future__ import annotations

from collections.abc import Iterable

Deployment = tuple[str, str]
"""An application's name, and a deployment's in it."""

_living: dict[Deployment, tuple[str, ...]] = {}


def publish(deployment: Deployment, replicas: Iterable[str]) -> None:
    """Has everybody know which replicas live now; from any thread."""
    _living[deployment] = tuple(sorted(replicas))


def living(deployment: Deployment) -> tuple[str, ...]:
    """Names of a deployment's replicas that are taken for alive."""
    return _living.get(deployment, ())
