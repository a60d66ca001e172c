"""The owners of documents as one backend of a server: work is split by owner, and put together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.distributed.messages import Answer, Description, Task, owned_name, portable
from ragvl.distributed.partition import document_key
from ragvl.distributed.rendezvous import owner_of
from ragvl.server.backend import Backend, Scored
from ragvl.server.errors import DeadlineExceeded, ServerError, Unprocessable
from ragvl.server.refusals import plain_message

logger = logging.getLogger(__name__)

T = TypeVar("T")
Method = Literal["score", "warm", "are_warm"]

_ROUNDS = 4  # in which a request's documents find owners that live and hold them
_REMEMBERED = 2**17  # documents that owners were sent
_POLL = 0.05  # seconds between looks for an owner, while there is none
# An owner has so much less time than the request, in which a client is told of it
_MARGIN, _SHARE = 0.5, 0.9


class OwnerLost(ServerError):
    """The processes that owned a request's documents ended while they worked on it."""

    status, kind = 503, "owner_lost"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Retry-After": "1"})


class LostError(Exception):
    """An owner cannot be asked any more: its process or its machine has ended."""


class Link(Protocol):
    """How owners are reached."""

    def owners(self) -> Sequence[str]:
        """Names of those that live, as far as is known."""

    async def ask(self, method: Method, task: Task) -> Answer:
        """What the owner of a task says to it, or another one in its place.

        Raises:
            LostError: it has ended.
        """

    async def describe(self) -> Description:
        """What owners are alike in."""


@dataclass(frozen=True)
class _Named:
    """A document of a request.

    Attributes:
        document: it.
        key: that decides who owns it.
        name: that its owner knows it by.
    """

    document: Document
    key: str
    name: str


class Owners(Backend):
    """Has each document's work done by its owner, and hands all of it over in order, or none.

    Documents go to an owner once, and then by their names. Work of an owner that is lost is done by
    the others; scores are the same to the bit whoever computes them.

    Args:
        link: reaches the owners.
    """

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._sent: OrderedDict[tuple[str, str], None] = OrderedDict()  # (owner, document's name)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ragvl-work")

    def start(self) -> None:
        """Nothing: owners run already."""

    def close(self) -> None:
        """Ends the thread of `run`; owners go on."""
        self._draining = True
        self._thread.shutdown(cancel_futures=True)

    async def score(
        self, pairs: Sequence[tuple[Query, Document]], *, deadline: float | None = None
    ) -> Scored:
        """Scores pairs, each by its document's owner.

        Raises:
            OwnerLost: owners ended, and those that took over as well.
            DeadlineExceeded: an owner did not answer in time; the message names it.
            ServerError: an owner refused it, or nothing new is accepted.
        """
        outcomes, answers = await self._each(
            "score", [one for _, one in pairs], deadline, queries=[query for query, _ in pairs]
        )
        return Scored(
            outcomes,
            queued_ms=max((answer.queued_ms for answer in answers), default=0.0),
            scored_ms=max((answer.scored_ms for answer in answers), default=0.0),
        )

    async def warm(
        self, documents: Sequence[Document], *, deadline: float | None = None
    ) -> list[Literal["built", "known"] | Exception]:
        """Has documents' owners compute their prefixes; see `score`."""
        outcomes, _ = await self._each("warm", documents, deadline)
        return outcomes

    async def is_warm(self, document: Document) -> bool:
        """Whether its owner keeps its prefix; see `score`."""
        (outcome,), _ = await self._each("are_warm", [document], None)
        if isinstance(outcome, Exception):
            raise outcome
        return bool(outcome)

    async def run(
        self, function: Callable[[], T], *, kind: str, deadline: float | None = None
    ) -> T:
        """What `function` gives in the one thread of this process for such work."""
        del kind
        self.check_room(1, deadline)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def check_room(self, num_pairs: int = 1, deadline: float | None = None) -> None:
        """Refuses what comes too late; how much waits, the owners know."""
        del num_pairs
        self._check_accepted()
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineExceeded("the time that the request was given is over")

    def seconds_ahead(self) -> float:
        """0: how much waits, the owners know."""
        return 0.0

    async def _each(
        self,
        method: Method,
        documents: Sequence[Document],
        deadline: float | None,
        *,
        queries: Sequence[Query] = (),
    ) -> tuple[list[Any], list[Answer]]:
        """Outcomes by document, and what owners said."""
        self.check_room(len(documents), deadline)
        outcomes: dict[int, Any] = {}
        named: dict[int, _Named] = {}
        for place, one in enumerate(await asyncio.to_thread(_named, documents)):
            if isinstance(one, Exception):
                outcomes[place] = one
            else:
                named[place] = one
        answers: list[Answer] = []
        lost: list[str] = []
        for _ in range(_ROUNDS):
            if not named:
                return [outcomes[place] for place in range(len(documents))], answers
            groups = await self._by_owner(named, deadline)
            tasks = [
                await self._task(
                    owner, {place: named[place] for place in places}, queries, deadline
                )
                for owner, places in groups.items()
            ]
            said = await _all([self._ask(method, task) for task in tasks])
            for (owner, places), answer in zip(groups.items(), said, strict=True):
                if answer is None:
                    lost.append(owner)
                    logger.warning("owner %s was lost: others do its work", owner)
                elif answer.missing:
                    for name in answer.missing:
                        self._sent.pop((owner, name), None)
                else:
                    answers.append(answer)
                    for place, outcome in zip(places, answer.outcomes, strict=True):
                        outcomes[place] = outcome
                        del named[place]
        who = " and ".join(f"owner {owner}" for owner in dict.fromkeys(lost)) or "an owner"
        raise OwnerLost(f"{who} ended while this was worked on, and so did who took over")

    async def _by_owner(
        self, named: Mapping[int, _Named], deadline: float | None
    ) -> dict[str, list[int]]:
        """Places of documents by owner.

        Raises:
            OwnerLost: nobody lives until the deadline.
        """
        while not (owners := self._link.owners()):
            if deadline is not None and deadline - time.monotonic() < 2 * _POLL:
                raise OwnerLost("no owner of documents lives now")
            await asyncio.sleep(_POLL)
        groups: dict[str, list[int]] = defaultdict(list)
        for place, one in named.items():
            groups[owner_of(one.key, owners)].append(place)
        return groups

    async def _task(
        self,
        owner: str,
        named: Mapping[int, _Named],
        queries: Sequence[Query],
        deadline: float | None,
    ) -> Task:
        """What is asked of an owner about documents by their places."""
        distinct = list(dict.fromkeys(queries[place] for place in named)) if queries else []
        numbers = {query: number for number, query in enumerate(distinct)}
        new = {
            one.name: one.document for one in named.values() if (owner, one.name) not in self._sent
        }
        contents = await asyncio.to_thread(_portable, new) if new else {}
        left = None if deadline is None else deadline - time.monotonic()
        return Task(
            owner,
            [one.name for one in named.values()],
            contents,
            distinct,
            [numbers[queries[place]] for place in named] if queries else [],
            None if left is None else max(0.0, left - _MARGIN, left * _SHARE),
        )

    async def _ask(self, method: Method, task: Task) -> Answer | None:
        """What the owner says; None if it is lost.

        Raises:
            DeadlineExceeded: it says nothing in time.
            Exception: why it refuses.
        """
        try:
            answer = await asyncio.wait_for(self._link.ask(method, task), task.seconds)
        except LostError:
            return None
        except TimeoutError:
            raise DeadlineExceeded(
                f"owner {task.owner} did not answer by the request's deadline"
            ) from None
        if answer.refused is not None:
            raise answer.refused
        if not answer.missing:
            self._remember(task)
        return answer

    def _remember(self, task: Task) -> None:
        """Has documents go to this owner by their names from now on."""
        for name in task.documents:
            self._sent[task.owner, name] = None
            self._sent.move_to_end((task.owner, name))
        while len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)


def _named(documents: Sequence[Document]) -> list[_Named | DocumentError]:
    """Documents with their names, or why one has none; may read files."""
    named: list[_Named | DocumentError] = []
    for document in documents:
        try:
            named.append(_Named(document, document_key(document), owned_name(document)))
        except DocumentError as error:
            named.append(error)
    return named


def _portable(documents: Mapping[str, Document]) -> dict[str, Document]:
    """Documents by name as other processes get them.

    Raises:
        Unprocessable: a file was there, and no longer is.
    """
    held = {}
    for name, document in documents.items():
        try:
            held[name] = portable(document, name)
        except (DocumentError, OSError) as error:
            raise Unprocessable(plain_message(error, document)) from error
    return held


async def _all(work: Sequence[Awaitable[T]]) -> list[T]:
    """What all of it gives; at the first failure, or if nobody waits, the rest is given up."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
