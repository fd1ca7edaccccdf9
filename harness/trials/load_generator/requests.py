"""A batch of timed requests with prompts of one exact length."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from harness.contracts.diagnosis import Diagnosis
from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.router_client.chat_stream import ChatRequest
from harness.trials.context import Context
from harness.trials.load_generator.thrash_guard import ends_thrash
from harness.trials.profile.steps import InferenceStep, PoolStep, SoakStep

WARMUP_TOKENS = 64
ATTEMPTS = 3
ASSUMED_TEMPLATE_TOKENS = 20
"""Before a model's first answer."""
# Each is one token, with its leading space, in the Llama 2, Llama 3 and SmolLM2 vocabularies.
WORD_LIST = "the of and to in is that it was for on are as with his they at be this have from or one had by"
WORDS = tuple(WORD_LIST.split())


def words(count: int) -> str:
    """Text of ``count`` common words."""
    return " ".join(WORDS[index % len(WORDS)] for index in range(count))


def word_count(prompt_tokens: int, template_tokens: int = ASSUMED_TEMPLATE_TOKENS) -> int:
    """Words that make a prompt of so many tokens: each is one, and the chat template adds a fixed number.

    That number is the server's count of one prompt less its words; it is taken anew from each answer.
    """
    return max(1, prompt_tokens - template_tokens)


@dataclass
class RequestRunner:
    """Sends requests of one length; each is appended to the run as it ends."""

    ctx: Context
    trial: str
    step: PoolStep | InferenceStep | SoakStep
    sent: list[Request] = field(default_factory=list)
    last_token_s: float = field(default_factory=time.monotonic)
    """When the newest token came, on the monotonic clock; before the first, when this was made."""

    async def warm_up(self) -> bool:
        """Send a short request whose figures do not count; whether it was answered.

        Raises:
            HarnessError: the model's chat template alone is longer than the prompt asked for.
        """
        model, tokens = self.step.model, self.step.prompt_tokens
        self.ctx.say("warm-up")
        request = await self._send(0, min(tokens, WARMUP_TOKENS), 1, warmup=True)
        if request.error:
            return False
        template_tokens = self.ctx.template_tokens.get(model, 0)
        if tokens <= template_tokens:
            raise HarnessError(
                f"{model}: a prompt of {tokens} tokens cannot be made, its chat template "
                f"alone takes {template_tokens}; ask for {template_tokens + 1} or more in the profile"
            )
        return True

    async def send_exact(self, index: int) -> Request:
        """One request whose prompt is as long as asked.

        One whose prompt the server counted otherwise is kept as a warm-up and sent again, a few times.
        """
        for _ in range(ATTEMPTS):
            request = await self._send(
                index, self.step.prompt_tokens, self.step.generated_tokens, warmup=False
            )
            if request.error or not request.warmup:
                break
        return request

    async def _send(self, index: int, tokens: int, generate: int, *, warmup: bool) -> Request:
        model, template_tokens = self.step.model, self.ctx.template_tokens
        count = word_count(tokens, template_tokens.get(model, ASSUMED_TEMPLATE_TOKENS))
        request = await self.ctx.router.chat(
            ChatRequest(
                model,
                words(count),
                generate,
                self.step.deadline_s,
                trial=self.trial,
                index=index,
                warmup=warmup,
                on_token=self._note_token,
            )
        )
        if request.prompt_tokens is not None:
            template_tokens[model] = request.prompt_tokens - count
            if request.prompt_tokens != tokens:
                request.warmup = True
        self.sent.append(request)
        # In a thread: tokens of other streams are timed while the disk is waited for.
        await asyncio.to_thread(self.ctx.run.append_request, request)
        if request.error:
            request.warmup = False
        return request

    def _note_token(self) -> None:
        self.last_token_s = time.monotonic()


async def in_flight(streams: int, indices: Iterable[int], ask: Callable[[int], Awaitable[bool]]) -> None:
    """Call ``ask`` with one index after the other, ``streams`` at a time, until it returns False."""
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
    ctx: Context, trial: str, step: PoolStep | InferenceStep, repeats: int, concurrency: int = 1
) -> tuple[list[Request], Diagnosis | None]:
    """Send a short warm-up, then ``repeats`` requests, ``concurrency`` at a time; ends early at an error.

    Returns:
        The requests, and the diagnosis where they were ended because the backends thrashed and no token came.

    Raises:
        HarnessError: the model's chat template alone is longer than the prompt asked for.
    """
    requests = RequestRunner(ctx, trial, step)

    async def ask(index: int) -> bool:
        ctx.say(f"request {index} of {repeats}")
        return (await requests.send_exact(index)).error is None

    async with ends_thrash(ctx, lambda: requests.last_token_s) as watch:
        if await requests.warm_up():
            await in_flight(concurrency, range(1, repeats + 1), ask)
    return requests.sent, watch.diagnosis


def goodput(metrics: dict[str, float]) -> str:
    """What to add to an answer where limits were stated."""
    if "goodput_per_s" not in metrics:
        return ""
    met, sent = metrics["requests_within_limits"], metrics["requests"]
    return f"; {met:.0f} of {sent:.0f} requests within their limits, {metrics['goodput_per_s']:.3g} a second"


def shortfall(
    step: PoolStep | InferenceStep | SoakStep, sent: Sequence[Request], *, route: str, repeats: int
) -> str | None:
    """What keeps a batch from being the one asked for; None where nothing does.

    Args:
        route: ``pool`` or ``coordinator``: where the router had to send every request.
        repeats: how many measured ones there must be.
    """
    for request in sent:
        if request.error:
            name = "the warm-up" if request.index == 0 else f"request {request.index}"
            return f"{name} failed: {request.error}"
        if request.route != route:
            return f"{request.model} was answered by the {request.route}, not by the {route}"
    measured = [request for request in sent if not request.warmup]
    if len(measured) < repeats:
        return f"no prompt of exactly {step.prompt_tokens} tokens came about in {ATTEMPTS} attempts"
    for request in measured:
        if (got := request.completion_tokens) != step.generated_tokens:
            return f"request {request.index}: {got} tokens generated, {step.generated_tokens} asked"
        if not request.token_ns:
            return (
                f"request {request.index}: {step.generated_tokens} tokens generated, none of them with text"
            )
    return None
