"""Documents split by owner and put together: owners that are lost, forget, wait or refuse.

Owners are real, and in this process; how Ray Serve reaches them is tested in test_ray_serve.py.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from data_files import write_picture
from starlette.testclient import TestClient

from ragvl import Document, Query, Reranker
from ragvl.data.images import ImageError
from ragvl.distributed import VersionMismatchError
from ragvl.distributed.messages import Answer, Description, Task, owned_name, portable
from ragvl.distributed.owner import Owner
from ragvl.distributed.owners import LostError, OwnerLost, Owners
from ragvl.distributed.partition import document_key
from ragvl.distributed.rendezvous import owner_of
from ragvl.reranker import ScoredPair
from ragvl.server.app import create_app
from ragvl.server.errors import (
    DeadlineExceeded,
    Overloaded,
    ShuttingDown,
    StorageFull,
    TooLarge,
    Unprocessable,
)
from ragvl.server.metrics import Metrics
from ragvl.server.run import build_services, services_over
from ragvl.server.settings import TINY_RERANKER, ServerSettings
from ragvl.server.stages import Stages

WAIT = 60  # seconds; a bound, not a wait
NAMES = ("first", "second", "third")
SETTINGS = ServerSettings(device_cache="64MiB")


def owner(**settings: Any) -> Owner:
    given = {"held_bytes": 1 << 20, "dtype": "float32", "device": "cpu", **settings}
    return Owner(str(TINY_RERANKER), given.pop("settings", SETTINGS), **given)


class InProcess:
    """Owners in this process, of which each may end or fall silent; notes tasks.

    Attributes:
        tasks: that were answered, in turn.
        ended: owners that end with the next task that comes to them.
        silent: owners that never answer.
    """

    def __init__(self, owners: dict[str, Owner]) -> None:
        self.living = dict(owners)
        self.tasks: list[tuple[str, Task]] = []
        self.ended: set[str] = set()
        self.silent: set[str] = set()

    def owners(self) -> Sequence[str]:
        return list(self.living)

    async def ask(self, method: str, task: Task) -> Answer:
        if task.owner in self.silent:
            await asyncio.Event().wait()
        if task.owner in self.ended:
            del self.living[task.owner]
            self.ended.remove(task.owner)
            raise LostError
        sent = pickle.loads(pickle.dumps(task))
        answer = await getattr(self.living[task.owner], method)(sent)
        self.tasks.append((method, task))
        return pickle.loads(pickle.dumps(answer))

    async def describe(self) -> Description:
        return await next(iter(self.living.values())).describe()


@pytest.fixture(scope="module")
def three() -> Any:
    owners = {name: owner() for name in NAMES}
    yield owners
    for one in owners.values():
        one.close()


@pytest.fixture
def link(three: dict[str, Owner]) -> InProcess:
    return InProcess(three)


@asynccontextmanager
async def backend(link: InProcess) -> AsyncIterator[Owners]:
    owners = Owners(link)
    owners.start()
    try:
        yield owners
    finally:
        owners.close()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), WAIT))


def texts(count: int, about: str) -> list[Document]:
    return [Document(text=f"{about} {i} is red") for i in range(count)]


def pairs_of(documents: Sequence[Document], *questions: str) -> list[tuple[Query, Document]]:
    queries = [Query(question) for question in questions]
    return [(queries[i % len(queries)], document) for i, document in enumerate(documents)]


def raw(outcomes: Sequence[ScoredPair | Exception]) -> list[float]:
    assert all(isinstance(one, ScoredPair) for one in outcomes)
    return [one.raw for one in outcomes]  # type: ignore[union-attr]


@pytest.fixture
def expected(tiny_reranker: Reranker) -> Callable[[Sequence[tuple[Query, Document]]], list[float]]:
    return lambda pairs: tiny_reranker.score(pairs, raw=True, progress=False).tolist()


@pytest.mark.slow
def test_scores_are_those_of_one_process_and_each_document_is_one_owners(
    link: InProcess, expected: Any, tmp_path: Path
) -> None:
    pictures = [write_picture(tmp_path / f"{c}.png", c) for c in ("red", "green", "blue", "white")]
    documents = [
        *texts(12, "Barn"),
        *(Document(path, caption="A barn") for path in pictures),
        Document(parts=[pictures[1], "beside", pictures[2]]),
    ]
    pairs = pairs_of(documents, "Which barn is red?", "Where is it?")

    async def main() -> None:
        async with backend(link) as owners:
            before = [await one.figures() for one in link.living.values()]
            first = await owners.score(pairs)
            again = await owners.score(pairs[::-1])
            after = [await one.figures() for one in link.living.values()]
        assert raw(first.pairs) == expected(pairs)
        assert raw(again.pairs) == expected(pairs[::-1])
        distinct = {owned_name(document) for document in documents}
        for figure in ("built", "documents"):
            assert sum(a[figure] - b[figure] for a, b in zip(after, before, strict=True)) == len(
                distinct
            )
        assert first.built == len(distinct) and again.built == 0
        # Contents once, and then names
        firsts, agains = link.tasks[:3], link.tasks[3:]
        assert sum(len(task.contents) for _, task in firsts) == len(distinct)
        assert len(firsts) == len(agains) == 3 and not any(task.contents for _, task in agains)

    run(main)


@pytest.mark.slow
def test_a_lost_owners_work_is_done_by_the_others_and_only_its(
    link: InProcess, expected: Any
) -> None:
    documents = texts(20, "Mill")
    pairs = pairs_of(documents, "Which mill is red?")

    async def main() -> None:
        async with backend(link) as owners:
            await owners.score(pairs)
            link.ended.add("second")
            scored = await owners.score(pairs)
        assert raw(scored.pairs) == expected(pairs)
        lost = [one for one in documents if owner_of(document_key(one), NAMES) == "second"]
        assert lost and scored.built == len(lost)

    run(main)


def test_a_request_that_ends_every_owner_is_refused_by_their_names(link: InProcess) -> None:
    async def main() -> None:
        async with backend(link) as owners:
            link.ended.update(NAMES)
            with pytest.raises(OwnerLost, match="no owner of documents lives now"):
                await owners.score(pairs_of(texts(1, "Lake"), "q"), deadline=monotonic() + 0.5)

    run(main)


def test_a_request_that_ends_one_owner_after_another_is_given_up(
    three: dict[str, Owner],
) -> None:
    class Ending(InProcess):
        asked = 0

        async def ask(self, *_: Any) -> Answer:
            self.asked += 1
            raise LostError

    link = Ending(three)

    async def main() -> None:
        async with backend(link) as owners:
            document = Document(text="Poison")
            name = owner_of(document_key(document), NAMES)
            with pytest.raises(OwnerLost, match=f"owner {name} ended"):
                await owners.score([(Query("q"), document)])
            assert link.asked < 10

    run(main)


def test_an_owner_that_never_answers_is_named_by_the_deadline(link: InProcess) -> None:
    async def main() -> None:
        async with backend(link) as owners:
            link.silent.add("third")
            deadline = monotonic() + 1
            with pytest.raises(DeadlineExceeded, match="owner third did not answer"):
                await owners.score(pairs_of(texts(20, "Silo"), "q"), deadline=deadline)
            assert monotonic() < deadline, "a client is told within the request's time"
            with pytest.raises(DeadlineExceeded):
                await owners.score(pairs_of(texts(2, "Silo"), "q"), deadline=monotonic() - 1)

    run(main)


def test_what_an_owner_has_dropped_it_asks_for_again(expected: Any) -> None:
    small = owner(held_bytes=40)
    link = InProcess({"small": small})
    pairs = pairs_of(texts(6, "Well"), "Which well is red?")

    async def main() -> None:
        async with backend(link) as owners:
            for _ in range(2):
                assert raw((await owners.score(pairs)).pairs) == expected(pairs)
            assert not await owners.is_warm(pairs[0][1]), "it is not held any more"
            assert (await small.figures())["bytes"] <= 40

    try:
        run(main)
    finally:
        small.close()


def test_documents_are_warmed_by_their_owners(link: InProcess) -> None:
    documents = texts(9, "Gate")

    async def main() -> None:
        async with backend(link) as owners:
            assert not await owners.is_warm(documents[0])
            assert await owners.warm(documents) == ["built"] * 9
            assert await owners.warm(documents) == ["known"] * 9
            assert all([await owners.is_warm(one) for one in documents])
            assert (await owners.score(pairs_of(documents, "q"))).built == 0

    run(main)


def test_a_document_that_cannot_be_used_has_its_own_error(link: InProcess, tmp_path: Path) -> None:
    gone, broken = tmp_path / "gone.png", tmp_path / "broken.png"
    broken.write_bytes(write_picture(tmp_path / "a.png", "red").read_bytes()[:50])
    documents = [Document(gone), Document(broken), Document(text="A barn")]

    async def main() -> None:
        async with backend(link) as owners:
            scored = await owners.score(pairs_of(documents, "q"))
            missing, unreadable, fine = scored.pairs
            assert isinstance(missing, ImageError) and isinstance(unreadable, ImageError)
            assert "broken.png" not in str(unreadable) and "the document" in str(unreadable)
            assert isinstance(fine, ScoredPair)

    run(main)


def test_an_owners_refusal_is_the_requests() -> None:
    small = owner(settings=replace_settings(max_pairs=2))
    link = InProcess({"small": small})

    async def main() -> None:
        async with backend(link) as owners:
            with pytest.raises(TooLarge, match="room for 2"):
                await owners.score(pairs_of(texts(3, "Door"), "q"))

    try:
        run(main)
    finally:
        small.close()


def replace_settings(**changed: Any) -> ServerSettings:
    return SETTINGS.model_copy(update=changed)


@pytest.mark.slow
def test_an_index_is_searched_and_its_documents_are_scored_by_owners(
    link: InProcess, demo: Stages
) -> None:
    described = asyncio.run(link.describe())
    spread = services_over(
        Owners(link),
        SETTINGS,
        Metrics(),
        model=described.model_name,
        threshold=described.threshold,
        thresholds=described.thresholds,
        retriever=demo.retriever,
    )
    alone = build_services(demo, SETTINGS, model=described.model_name)
    answers = []
    for services in (spread, alone):
        with TestClient(create_app(services)) as client:
            found = client.post("/v1/search", json={"query": demo.examples[0]})
            assert found.status_code == 200, found.text
            (known,) = client.get("/v1/documents?limit=1").json()["data"]
            warm = client.get(f"/v1/documents/{known['id']}").json()["warm"]
            answers.append((found.json()["results"], found.json()["threshold"], warm))
    assert answers[0] == answers[1]


def test_after_the_end_began_nothing_new_is_accepted(link: InProcess) -> None:
    async def main() -> None:
        async with backend(link) as owners:
            with owners.accept():
                draining = asyncio.ensure_future(owners.drain(WAIT))
                await asyncio.sleep(0)
                await owners.score(pairs_of(texts(1, "Roof"), "q"))
            assert await draining
            with pytest.raises(ShuttingDown):
                await owners.score(pairs_of(texts(1, "Roof"), "q"))

    run(main)


def test_no_request_has_its_scores_placed_elsewhere(link: InProcess, expected: Any) -> None:
    """Several at once, with documents several times and in mixed orders."""
    documents = texts(8, "Tower")
    requests = [
        pairs_of([documents[(i * k) % 8] for i in range(10)], f"Which tower is {k}?", "Why?")
        for k in range(1, 8)
    ]

    async def main() -> None:
        async with backend(link) as owners:
            scored = await asyncio.gather(*(owners.score(pairs) for pairs in requests))
        for pairs, one in zip(requests, scored, strict=True):
            assert raw(one.pairs) == expected(pairs)

    run(main)


def test_a_picture_is_sent_as_it_was_named_or_not_at_all(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", "red")
    document = Document(path, "A barn", "its id", max_pixels=10_000).with_caption_first()
    name = owned_name(document)
    sent = pickle.loads(pickle.dumps(portable(document, name)))
    assert owned_name(sent) == name and sent.image == path.read_bytes()
    assert [type(part) for part in sent.parts] == [type(part) for part in document.parts]
    write_picture(path, "blue")
    with pytest.raises(ValueError, match="has changed"):
        portable(document, name)


def test_documents_that_a_score_may_tell_apart_have_names_of_their_own(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", "red")
    documents = [
        Document(path),
        Document(path, "A barn"),
        Document(path, "A barn").with_caption_first(),
        Document(path, max_pixels=5),
        Document(text="A barn"),
        Document(parts=["A barn"]),
        Document(parts=["A", "barn"]),
        Document(parts=[path]),
        Document(parts=[path, "A barn"]),
    ]
    assert len({owned_name(document) for document in documents}) == len(documents)
    same = Document(path.read_bytes(), "A barn", "an id")
    assert owned_name(same) == owned_name(documents[1])


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("too many", retry_after=3.5),
        Unprocessable("documents[0]: no", param="documents[0]"),
        ShuttingDown(),
        StorageFull("full"),
        OwnerLost("owner a ended"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_reaches_another_process_as_it_is(error: Any) -> None:
    sent = pickle.loads(pickle.dumps(error))
    assert type(sent) is type(error) and str(sent) == str(error)
    assert vars(sent) == vars(error)


def test_a_worker_without_the_models_folder_or_with_other_versions_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"on node .*{tmp_path.name}/gone"):
        Owner(str(tmp_path / "gone"), SETTINGS, held_bytes=1)
    with pytest.raises(VersionMismatchError, match=r"torch .*the driver's is 1\.0"):
        Owner(str(TINY_RERANKER), SETTINGS, held_bytes=1, versions={"torch": "1.0"})


def test_health_is_that_of_the_models_thread() -> None:
    one = owner()
    one.check_health()
    one.close()
    with pytest.raises(RuntimeError, match="thread has ended"):
        one.check_health()
