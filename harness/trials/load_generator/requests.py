"""A batch of timed requests with prompts of one exact length."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from harness.contracts.diagnosis import Diagnosis
from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.router_client.chat_stream import ChatRequest
from harness.trials.context import Context
from harness.trials.load_generator.prompts import words
from harness.trials.load_generator.thrash_guard import ends_thrash

WARMUP_TOKENS = 64
ATTEMPTS = 3


@dataclass
class Asker:
    """Sends requests of one length; each is appended to the run as it ends."""

    ctx: Context
    trial: str
    model: str
    prompt_tokens: int
    generated_tokens: int
    deadline_s: float
    sent: list[Request] = field(default_factory=list)
    moved_s: float = field(default_factory=time.monotonic)
    """When the newest token came, on the monotonic clock; before the first, when this was made."""

    def _moved(self) -> None:
        self.moved_s = time.monotonic()

    async def warm_up(self) -> bool:
        """Send a short request whose figures do not count; whether it was answered.

        Raises:
            HarnessError: the model's chat template alone is longer than the prompt asked for.
        """
        self.ctx.say("warm-up")
        seen = await self._ask(0, min(self.prompt_tokens, WARMUP_TOKENS), 1, warmup=True)
        if seen.error:
            seen.warmup = False
            return False
        shortest = self.ctx.sizer(self.model).shortest
        if shortest is not None and self.prompt_tokens < shortest:
            raise HarnessError(
                f"{self.model}: a prompt of {self.prompt_tokens} tokens cannot be made, its chat template "
                f"alone takes {shortest - 1}; ask for {shortest} or more in the profile"
            )
        return True

    async def exact(self, index: int) -> Request:
        """One request whose prompt is as long as asked.

        One whose prompt the server counted otherwise is kept as a warm-up and sent again, a few times.
        """
        for _ in range(ATTEMPTS):
            seen = await self._ask(index, self.prompt_tokens, self.generated_tokens, warmup=False)
            if seen.error:
                seen.warmup = False
            if seen.error or not seen.warmup:
                break
        return seen

    async def _ask(self, index: int, tokens: int, generate: int, *, warmup: bool) -> Request:
        sizer = self.ctx.sizer(self.model)
        count = sizer.guess(tokens)
        seen = await self.ctx.router.chat(
            ChatRequest(
                self.model,
                words(count),
                generate,
                self.deadline_s,
                trial=self.trial,
                index=index,
                warmup=warmup,
                on_token=self._moved,
            )
        )
        if seen.prompt_tokens is not None:
            sizer.learn(count, seen.prompt_tokens)
            if seen.prompt_tokens != tokens:
                seen.warmup = True
        self.sent.append(seen)
        self.ctx.run.append_request(seen)
        return seen


async def in_flight(streams: int, indices: Iterable[int], ask: Callable[[int], Awaitable[bool]]) -> None:
    """Ask for one index after the other, ``streams`` at a time.

    Args:
        ask: whether another one should be begun after it.
    """
    waiting, go_on = iter(indices), True

    async def stream() -> None:
        nonlocal go_on
        for index in waiting:
            if not go_on:
                return
            go_on = await ask(index) and go_on

    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(stream())


async def measure(
    ctx: Context,
    trial: str,
    model: str,
    *,
    prompt_tokens: int,
    generated_tokens: int,
    repeats: int,
    deadline_s: float,
    concurrency: int = 1,
) -> tuple[list[Request], Diagnosis | None]:
    """Send a short warm-up, then ``repeats`` requests, ``concurrency`` at a time; ends early at an error.

    Returns:
        The requests, and the diagnosis where they were ended because the backends thrashed and no token came.

    Raises:
        HarnessError: the model's chat template alone is longer than the prompt asked for.
    """
    asker = Asker(ctx, trial, model, prompt_tokens, generated_tokens, deadline_s)

    async def ask(index: int) -> bool:
        ctx.say(f"request {index} of {repeats}")
        return (await asker.exact(index)).error is None

    async with ends_thrash(ctx, lambda: asker.moved_s) as watch:
        if await asker.warm_up():
            await in_flight(concurrency, range(1, repeats + 1), ask)
    return asker.sent, watch.found


def goodput(metrics: dict[str, float]) -> str:
    """What to add to an answer where limits were stated."""
    if "goodput_per_s" not in metrics:
        return ""
    met, sent = metrics["requests_within_limits"], metrics["requests"]
    return f"; {met:.0f} of {sent:.0f} requests within their limits, {metrics['goodput_per_s']:.3g} a second"


def shortfall(
    sent: list[Request], *, route: str, prompt_tokens: int, generated_tokens: int, repeats: int
) -> str | None:
    """What keeps a batch from being the one asked for; None where nothing does.

    Args:
        route: ``pool`` or ``coordinator``: where the router had to send every request.
    """
    for request in sent:
        if request.error:
            name = "the warm-up" if request.index == 0 else f"request {request.index}"
            return f"{name} failed: {request.error}"
        if request.route != route:
            return f"{request.model} was answered by the {request.route}, not by the {route}"
    measured = [request for request in sent if not request.warmup]
    if len(measured) < repeats:
        return f"no prompt of exactly {prompt_tokens} tokens came about in {ATTEMPTS} attempts"
    for request in measured:
        if request.completion_tokens != generated_tokens:
            got = request.completion_tokens
            return f"request {request.index}: {got} tokens generated, {generated_tokens} asked"
        if not request.token_ns:
            return f"request {request.index}: {generated_tokens} tokens generated, none of them with text"
    return None
