"""A batch of timed requests with prompts of one exact length."""

from harness.errors import HarnessError
from harness.runs.schema import Request
from harness.trials.context import Context
from harness.trials.prompt import words
from harness.trials.stream import ChatRequest

WARMUP_TOKENS = 64
ATTEMPTS = 3


async def measure(
    ctx: Context,
    trial: str,
    model: str,
    *,
    prompt_tokens: int,
    generated_tokens: int,
    repeats: int,
    deadline_s: float,
) -> list[Request]:
    """Send a short warm-up, then ``repeats`` requests one after the other; ends early at an error.

    Every request is appended to the run as it ends. One whose prompt the server counted otherwise than asked
    for is kept as a warm-up and sent again.

    Raises:
        HarnessError: the model's chat template alone is longer than the prompt asked for.
    """
    sizer = ctx.sizer(model)
    sent: list[Request] = []

    async def ask(index: int, tokens: int, generate: int, warmup: bool) -> Request:
        count = sizer.guess(tokens)
        seen = await ctx.router.chat(
            ChatRequest(model, words(count), generate, deadline_s, trial=trial, index=index, warmup=warmup)
        )
        if seen.prompt_tokens is not None:
            sizer.learn(count, seen.prompt_tokens)
            if seen.prompt_tokens != tokens:
                seen.warmup = True
        sent.append(seen)
        ctx.run.append_request(seen)
        return seen

    ctx.say("warm-up")
    warm = await ask(0, min(prompt_tokens, WARMUP_TOKENS), 1, warmup=True)
    if warm.error:
        warm.warmup = False
        return sent
    if sizer.shortest is not None and prompt_tokens < sizer.shortest:
        raise HarnessError(
            f"{model}: a prompt of {prompt_tokens} tokens cannot be made, its chat template alone takes "
            f"{sizer.shortest - 1}; ask for {sizer.shortest} or more in the profile"
        )
    for index in range(1, repeats + 1):
        ctx.say(f"request {index} of {repeats}")
        for _ in range(ATTEMPTS):
            seen = await ask(index, prompt_tokens, generated_tokens, warmup=False)
            if seen.error:
                seen.warmup = False
                return sent
            if not seen.warmup:
                break
    return sent


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
