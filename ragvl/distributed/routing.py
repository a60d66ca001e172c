"""How owners are reached in Ray Serve: each is a replica, and a task goes to the one it is for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from typing import Any

from ragvl.distributed import members
from ragvl.distributed.messages import Answer, Description, Task
from ragvl.distributed.owners import LostError, Method
from ragvl.distributed.rendezvous import owner_of
from ragvl.extras import extra

with extra("ray", "ray"):
    import ray.exceptions
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
    from ray.serve.handle import DeploymentHandle
    from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica


class OwnerRouter(RequestRouter):
    """Sends a task to its owner; and to another replica, always the same, if that is gone.

    Serve has one in each process that holds a handle, and tells it of replicas that come and go.
    """

    def __init__(self, deployment_id: Any, *args: Any, **settings: Any) -> None:
        super().__init__(deployment_id, *args, **settings)
        self._deployment = deployment_id.app_name, deployment_id.name

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Of Serve: which replicas there are now."""
        super().update_replicas(replicas)
        self._publish()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Of Serve: a replica was found dead."""
        super().on_replica_actor_died(replica_id)
        self._publish()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Of Serve: the replica for a call; all of them for one without a task."""
        task = next(iter(pending_request.args), None) if pending_request is not None else None
        if not isinstance(task, Task) or not candidate_replicas:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        chosen = by_name.get(task.owner) or by_name[owner_of(task.owner, by_name)]
        return [[chosen]]

    def _publish(self) -> None:
        members.publish(self._deployment, (id.unique_id for id in self.curr_replicas))


class ReplicaLink:
    """Reaches owners by a handle of their deployment; see `Link`.

    Args:
        handle: the deployment's, whose request router is `OwnerRouter`.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._deployment = handle.app_name, handle.deployment_name

    def owners(self) -> Sequence[str]:
        """Names of the replicas that Serve takes for alive."""
        return members.living(self._deployment)

    async def ask(self, method: Method, task: Task) -> Answer:
        """What a task's owner says.

        Raises:
            LostError: it has ended.
        """
        answer: Answer = await self._call(method, task)
        return answer

    async def describe(self) -> Description:
        """What one of them says, whichever."""
        description: Description = await self._call("describe")
        return description

    async def _call(self, method: str, *args: Any) -> Any:
        # In a context of its own: calls of one request would share an id, by which the router
        # tells them apart
        response = Context().run(getattr(self._handle, method).remote, *args)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (
            ray.exceptions.ActorDiedError,
            ray.exceptions.ActorUnavailableError,
            ReplicaUnavailableError,
            DeploymentUnavailableError,
        ) as error:
            raise LostError(str(error)) from error
