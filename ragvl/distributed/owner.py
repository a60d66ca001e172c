"""A process that owns documents: it holds them, their prefixes, and a model that scores them."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ragvl.data.document import Document
from ragvl.distributed.messages import Answer, Description, Task, num_bytes, sendable
from ragvl.distributed.worker import assigned_device, loading
from ragvl.reranker import Reranker
from ragvl.server.engine import Engine
from ragvl.server.errors import ServerError
from ragvl.server.run import make_prefix_cache, name_of_model, ready
from ragvl.server.settings import ServerSettings
from ragvl.server.stages import load_stages


class Owner:
    """Holds the documents that it is sent, and scores them.

    Args:
        model: a reranker's folder or hub id, which must be there on each node.
        settings: limits of the queue, and of the prefix cache.
        held_bytes: documents in memory; those used longest ago are dropped, and asked for again.
        versions: those of the process that builds the application, to refuse others.
        load: what else `Reranker.from_pretrained` takes.

    Raises:
        OSError: there is no such model on this node; the message names it.
        VersionMismatchError: versions differ.
        ValueError: of a setting, or of the model.
    """

    def __init__(
        self,
        model: str | Path,
        settings: ServerSettings,
        *,
        held_bytes: int,
        versions: Mapping[str, str] | None = None,
        **load: Any,
    ) -> None:
        load["device"] = assigned_device(load.get("device", "auto"))
        load["prefix_cache"] = make_prefix_cache(settings)
        reranker = partial(Reranker.from_pretrained, model, **load)
        with loading(versions):
            self._reranker = ready(partial(load_stages, reranker, thresholds=model)).reranker
        self._model_name = name_of_model(str(model))
        self._engine = Engine(self._reranker, settings)
        self._documents = HeldDocuments(held_bytes)
        self._num_built = 0
        self._engine.start()

    async def describe(self) -> Description:
        """What the owners' router needs to know of the model."""
        return Description(self._model_name, self._reranker.threshold, self._reranker.thresholds)

    async def figures(self) -> dict[str, Any]:
        """For whoever watches: the process, prefixes that it built, documents that it holds."""
        return {
            "process": os.getpid(),
            "built": self._num_built,
            "documents": len(self._documents),
            "bytes": self._documents.num_bytes,
        }

    async def score(self, task: Task) -> Answer:
        """Scores a task's pairs."""

        async def work(documents: Sequence[Document], deadline: float | None) -> Answer:
            pairs = [
                (task.queries[place], document)
                for place, document in zip(task.asked, documents, strict=True)
            ]
            scored = await self._engine.score(pairs, deadline=deadline)
            outcomes = [
                sendable(one, *pair) if isinstance(one, Exception) else one
                for one, pair in zip(scored.pairs, pairs, strict=True)
            ]
            self._num_built += scored.built
            return Answer(outcomes, queued_ms=scored.queued_ms, scored_ms=scored.scored_ms)

        return await self._answer(task, work)

    async def warm(self, task: Task) -> Answer:
        """Computes the prefixes of a task's documents."""

        async def work(documents: Sequence[Document], deadline: float | None) -> Answer:
            outcomes = await self._engine.warm(documents, deadline=deadline)
            self._num_built += outcomes.count("built")
            return Answer(
                [
                    sendable(one, document) if isinstance(one, Exception) else one
                    for one, document in zip(outcomes, documents, strict=True)
                ]
            )

        return await self._answer(task, work)

    async def are_warm(self, task: Task) -> Answer:
        """Whether the prefixes of a task's documents are kept; not those of unknown ones."""
        outcomes = []
        for name in task.documents:
            document = self._documents.get(name)
            outcomes.append(document is not None and await self._engine.is_warm(document))
        return Answer(outcomes)

    def check_health(self) -> None:
        """Of Ray Serve, which replaces a process that raises here.

        Raises:
            RuntimeError: the model's thread has ended.
        """
        if not self._engine.is_alive:
            raise RuntimeError("the model's thread has ended")

    def close(self) -> None:
        """Ends the model's thread, if it has begun."""
        if hasattr(self, "_engine"):
            self._engine.close()

    async def _answer(
        self,
        task: Task,
        work: Callable[[Sequence[Document], float | None], Awaitable[Answer]],
    ) -> Answer:
        """What `work` says, of the documents and its deadline, or why nothing was done."""
        deadline = None if task.seconds is None else time.monotonic() + task.seconds
        found = self._documents.find(task.documents, task.contents)
        missing = frozenset(
            name for name, one in zip(task.documents, found, strict=True) if one is None
        )
        if missing:
            return Answer(missing=missing)
        try:
            return await work([one for one in found if one is not None], deadline)
        except (ServerError, ValueError) as error:
            return Answer(refused=sendable(error, *task.queries))


class HeldDocuments:
    """Documents in memory by name, those used last. Each stays the same object while it is there.

    Args:
        max_bytes: of their texts and pictures' files.

    Attributes:
        num_bytes: that are held.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, Document] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._held)

    def get(self, name: str) -> Document | None:
        """The document of that name; None if it is not held."""
        return self._held.get(name)

    def find(self, names: Sequence[str], contents: Mapping[str, Document]) -> list[Document | None]:
        """Documents of these names; those that `contents` brings are held from now on."""
        for name in dict.fromkeys(names):
            if name in self._held:
                self._held.move_to_end(name)
            elif name in contents:
                self._held[name] = contents[name]
                self.num_bytes += num_bytes(contents[name])
        found = [self._held.get(name) for name in names]
        while self.num_bytes > self._max_bytes and self._held:
            _, dropped = self._held.popitem(last=False)
            self.num_bytes -= num_bytes(dropped)
        return found
