"""A client that leaves ends the work that is done for it, and nothing else."""

import asyncio

import pytest
from harness.router.http.disconnect import ClientLeftError, ClientWatch
from starlette.types import Message


class Client:
    """One whose request has been read; it leaves when told to."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def leave(self) -> None:
        self._gone.set()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def test_work_is_cancelled_when_its_client_leaves() -> None:
    client, begun, cancelled = Client(), asyncio.Event(), False

    async def work() -> None:
        nonlocal cancelled
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    watch = ClientWatch.of({}, client.receive)
    asked = asyncio.create_task(watch.guard(work()))
    await begun.wait()
    client.leave()
    with pytest.raises(ClientLeftError):
        await asked
    assert cancelled


async def test_client_that_left_between_two_pieces_of_work_gets_no_second_one() -> None:
    client = Client()
    watch = ClientWatch.of({}, client.receive)
    assert await watch.guard(asyncio.sleep(0, "first")) == "first"
    client.leave()
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(ClientLeftError):
        await watch.guard(asyncio.Event().wait())


async def test_cancellation_by_somebody_else_stays_one() -> None:
    watch = ClientWatch.of({}, Client().receive)
    asked = asyncio.create_task(watch.guard(asyncio.Event().wait()))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    watch.close()


async def test_request_is_watched_once() -> None:
    scope: dict[str, object] = {}
    client = Client()
    watch = ClientWatch.of(scope, client.receive)
    assert ClientWatch.of(scope, client.receive) is watch
    watch.close()
