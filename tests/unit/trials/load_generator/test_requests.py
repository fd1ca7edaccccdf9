"""A batch of timed requests: what is recorded, and that recording does not disturb what is timed."""

import asyncio
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.router_client.chat_stream import ChatRequest
from harness.runs.folder import RunFolder, read_requests
from harness.trials.context import Context
from harness.trials.load_generator.requests import RequestRunner, in_flight, shortfall
from harness.trials.profile.steps import InferenceStep

TEMPLATE_TOKENS = 12
STEP = InferenceStep(kind="inference", model="m", prompt_tokens=35, generated_tokens=2, deadline_s=5)


def answered(chat: ChatRequest, prompt_tokens: int) -> Request:
    return Request(
        trial=chat.trial,
        index=chat.index,
        warmup=chat.warmup,
        route="coordinator",
        model=chat.model,
        sent_ns=1,
        token_ns=[2, 3],
        prompt_tokens=prompt_tokens,
        completion_tokens=chat.max_tokens,
    )


class Server:
    """Answers each request soon and counts its prompt as a model with a chat template does."""

    async def chat(self, chat: ChatRequest) -> Request:
        await asyncio.sleep(0.01)
        return answered(chat, len(chat.text.split()) + TEMPLATE_TOKENS)


def runner(run: RunFolder) -> RequestRunner:
    ctx: Any = SimpleNamespace(router=Server(), run=run, say=lambda text: None, template_tokens={})
    return RequestRunner(cast(Context, ctx), "01-x", STEP)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "run")


async def test_prompt_is_of_the_exact_length_after_one_answer(run: RunFolder) -> None:
    requests = runner(run)
    assert await requests.warm_up()
    request = await requests.send_exact(1)
    assert (request.prompt_tokens, request.warmup) == (35, False)
    assert list(read_requests(run.path)) == requests.sent
    assert shortfall(STEP, requests.sent, route="coordinator", repeats=1) is None


async def test_prompt_shorter_than_the_chat_template_is_refused_with_the_shortest(run: RunFolder) -> None:
    requests = runner(run)
    requests.step = STEP.model_copy(update={"prompt_tokens": TEMPLATE_TOKENS})
    with pytest.raises(HarnessError, match=f"alone takes {TEMPLATE_TOKENS}; ask for {TEMPLATE_TOKENS + 1}"):
        await requests.warm_up()


async def test_records_are_synced_beside_the_event_loop_that_times_the_streams(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(os, "fsync", lambda _: threads.append(threading.current_thread()))
    requests = runner(run)

    async def ask(index: int) -> bool:
        return (await requests.send_exact(index)).error is None

    await in_flight(2, range(1, 3), ask)
    assert threads
    assert threading.current_thread() not in threads
    assert len(list(read_requests(run.path))) == len(requests.sent)


async def test_so_many_are_in_flight_and_no_more() -> None:
    now, most, asked = 0, 0, []

    async def ask(index: int) -> bool:
        nonlocal now, most
        now += 1
        most = max(most, now)
        asked.append(index)
        await asyncio.sleep(0)
        now -= 1
        return True

    await in_flight(3, range(10), ask)
    assert (most, sorted(asked)) == (3, list(range(10)))


async def test_none_is_begun_after_one_that_says_so() -> None:
    asked: list[int] = []

    async def ask(index: int) -> bool:
        asked.append(index)
        return index < 4

    await in_flight(1, range(10), ask)
    assert asked == [0, 1, 2, 3, 4]
