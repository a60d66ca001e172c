"""A request's work ends at its deadline, and when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from server.gated import WAIT, Gate, begun, pairs_of, run
from starlette.requests import Request

from ragvl.server.deadlines import call, deadline_of
from ragvl.server.engine import Scored
from ragvl.server.errors import ClientGone, DeadlineExceeded, ShuttingDown, Unprocessable
from ragvl.server.services import Services

MakeServices = Callable[..., Services]


class Client:
    """A request's client, which waits until it is told to go."""

    def __init__(self, services: Services, **headers: str) -> None:
        self.goes = asyncio.Event()
        app = SimpleNamespace(state=SimpleNamespace(services=services))
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.request = Request({"type": "http", "headers": raw, "app": app}, self._receive)

    async def _receive(self) -> dict[str, object]:
        await self.goes.wait()
        return {"type": "http.disconnect"}


def score(services: Services, client: Client, count: int = 4) -> asyncio.Future[Scored]:
    async def work(deadline: float) -> Scored:
        return await services.engine.score(pairs_of("a", count), deadline=deadline)

    return asyncio.ensure_future(call(client.request, work))


@pytest.fixture
def services(make_services: MakeServices, gate: Gate):
    services = make_services(gate, pass_pairs=2, turn_pairs=2)
    services.engine.start()
    yield services
    gate.let_all_pass()
    services.close()


def test_work_is_answered_and_its_errors_are_its_own(services: Services, gate: Gate):
    async def fail(_: float) -> None:
        raise ZeroDivisionError("a fault")

    async def main() -> None:
        gate.let_all_pass()
        client = Client(services)
        assert len((await score(services, client)).pairs) == 4
        with pytest.raises(ZeroDivisionError):
            await call(client.request, fail)

    run(main())


def test_a_client_that_goes_away_takes_its_work_along(services: Services, gate: Gate):
    async def main() -> None:
        client, other = Client(services), Client(services)
        gone = score(services, client)
        await gate.wait_for_pass()
        stays = score(services, other, 1)
        client.goes.set()
        with pytest.raises(ClientGone):
            await gone
        gate.let_all_pass()
        assert len((await stays).pairs) == 1

    run(main())
    assert [len(one) for one in gate.passes] == [2, 1]


def test_the_deadline_ends_the_work_and_frees_its_place(services: Services, gate: Gate):
    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            await score(services, Client(services, x_request_timeout="0.05"))
        gate.let_all_pass()
        await score(services, Client(services, x_request_timeout=str(WAIT)), 1)

    run(main())
    assert sum(len(one) for one in gate.passes) <= 3  # one pass of two may have begun


def test_what_fails_as_it_is_given_up_stays_out_of_the_log(services: Services):
    told: list[dict[str, object]] = []

    async def fail(_: float) -> None:
        try:
            await asyncio.sleep(WAIT)
        except asyncio.CancelledError:
            raise ValueError("words of a user") from None

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        with pytest.raises(DeadlineExceeded):
            await call(Client(services, x_request_timeout="0.01").request, fail)
        gc.collect()

    run(main())
    assert not told


def test_who_cancels_a_call_cancels_its_work(services: Services, gate: Gate):
    async def main() -> None:
        task = score(services, Client(services))
        await gate.wait_for_pass()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        gate.let_all_pass()
        await score(services, Client(services), 1)

    run(main())
    assert [len(one) for one in gate.passes] == [2, 1]


def test_a_call_goes_on_while_the_server_ends_and_a_new_one_does_not(
    services: Services, gate: Gate
):
    async def main() -> None:
        async def two_stages(deadline: float) -> int:
            first = await services.engine.score(pairs_of("a", 2), deadline=deadline)
            second = await services.engine.score(pairs_of("b", 2), deadline=deadline)
            return len(first.pairs + second.pairs)

        accepted = asyncio.ensure_future(call(Client(services).request, two_stages))
        await gate.wait_for_pass()
        drained = await begun(services.engine.drain(WAIT))
        with pytest.raises(ShuttingDown):
            await score(services, Client(services))
        gate.let_all_pass()
        assert await accepted == 4
        assert await drained

    run(main())


@pytest.mark.parametrize("given", ["", "soon", "0", "-1", "nan", "inf", "1e9", "601"])
def test_a_timeout_that_is_none_is_refused_by_name(services: Services, given: str):
    async def main() -> None:
        request = Client(services, x_request_timeout=given).request
        with pytest.raises(Unprocessable) as refused:
            deadline_of(request)
        assert refused.value.param == "X-Request-Timeout"

    run(main())


def test_the_deadline_counts_from_the_request_s_arrival(services: Services):
    async def main() -> None:
        request = Client(services, x_request_timeout="7").request
        request.state.arrived = time.monotonic() - 5
        assert deadline_of(request) == request.state.arrived + 7
        late = Client(services, x_request_timeout="0.5")
        late.request.state.arrived = time.monotonic() - 1
        with pytest.raises(DeadlineExceeded):
            await score(services, late, 1)

    run(main())
