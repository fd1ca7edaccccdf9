"""The parity trial: do the backends compute what one machine computes?"""

from dataclasses import dataclass

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.plan import LoadRequest
from harness.contracts.run_records import Outcome, Request
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import RouterRefusedError
from harness.trials.context import Context, TrialResult, grade
from harness.trials.kinds.coordinator_steps import (
    any_timed_out,
    diagnose_requests,
    ended_state,
    keep_log,
    stop,
)
from harness.trials.kinds.load import refused, too_few_backends, undistributed
from harness.trials.profile.steps import ParityStep

LOGPROBS = {"logprobs": True, "top_logprobs": 1}
"""Without these an answer names no token ids, only text."""


@dataclass(frozen=True)
class Parity:
    """Two answers beside each other."""

    compared: int
    equal: int
    """Tokens with an id before the first that differs."""
    same_text: bool
    """llama-server names no id for a token that ends inside a character: the text tells of those."""
    largest_logprob_gap: float | None
    """Of the equal tokens: how far the two computations are apart where the choice is the same."""

    @property
    def same(self) -> bool:
        """Whether no token differs."""
        return self.equal == self.compared and self.same_text


def compare(reference: Request, other: Request) -> Parity:
    """Token by token, up to the first that differs; a token that one of them lacks differs."""
    pairs = list(zip(reference.token_ids, other.token_ids, strict=False))
    compared = max(len(reference.token_ids), len(other.token_ids))
    equal = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
    gaps = [abs(a - b) for a, b in zip(reference.logprobs[:equal], other.logprobs[:equal], strict=False)]
    return Parity(compared, equal, reference.text == other.text, max(gaps, default=None))


async def run_parity(ctx: Context, trial: str, step: ParityStep) -> TrialResult:
    """Answer once on the coordinator alone and once over the backends; passes when every token is the same.

    Both loads have the same flags. The first is the reference: no layer is offloaded, so that no backend
    takes part in it.
    """
    nodes = ctx.backends(step.nodes)
    if nodes is None:
        return TrialResult(Outcome.SKIPPED, too_few_backends(ctx, step.nodes))
    names = [node.name for node in nodes]
    answers: list[Request] = []
    states: list[CoordinatorState] = []
    for alone in (True, False):
        ctx.say("one node" if alone else f"{len(names)} backends")
        await stop(ctx, trial)
        request = LoadRequest(
            model=step.model,
            nodes=names,
            n_gpu_layers=0 if alone else None,
            flags=step.flags,
            context=step.context,
            deadline_s=step.deadline_s,
        )
        try:
            state = await ctx.router.load(request)
        except RouterRefusedError as refusal:
            return await refused(ctx, trial, step.expected, refusal, {"nodes": names})
        states.append(state)
        if alone and (state.report is None or state.report.offloaded):
            return TrialResult(
                Outcome.FAILED, "the reference is not of the coordinator alone", step.expected, state
            )
        answer = await ctx.router.chat(
            ChatRequest(
                *(step.model, step.prompt, step.tokens, step.deadline_s),
                trial=trial,
                index=len(answers),
                extra=LOGPROBS,
            )
        )
        ctx.run.append_request(answer)
        if wrong := _wrong(answer, step):
            ended = await ended_state(ctx, late=any_timed_out([answer]))
            return grade(wrong, step.expected, diagnose_requests(ended, [answer], wrong), ended)
        answers.append(answer)
        await keep_log(ctx, state)
    await stop(ctx, trial)
    return _compare_answers(step, names, answers, states[1])


def _wrong(answer: Request, step: ParityStep) -> str | None:
    if answer.error:
        return answer.error
    if answer.route != "coordinator":
        return f"{step.model} was answered by the {answer.route}, not by the coordinator"
    if answer.completion_tokens != step.tokens:
        return f"{answer.completion_tokens} tokens came, {step.tokens} were asked for"
    return None if answer.token_ids else "the server names no token by its id"


def _compare_answers(
    step: ParityStep, names: list[str], answers: list[Request], state: CoordinatorState
) -> TrialResult:
    alone, over = answers
    parity = compare(alone, over)
    metrics: dict[str, float] = {"tokens_compared": parity.compared, "tokens_equal": parity.equal}
    if parity.largest_logprob_gap is not None:
        metrics["largest_logprob_gap"] = parity.largest_logprob_gap
    details = {
        "nodes": names,
        "flags": step.flags,
        "prompt": step.prompt,
        "reference": {"text": alone.text, "token_ids": alone.token_ids, "where": "the coordinator alone"},
        "seen": {"text": over.text, "token_ids": over.token_ids, "where": ", ".join(names)},
    }
    if gap := undistributed(state):
        return grade("the second load was not over the backends", step.expected, gap, state, metrics, details)
    if parity.same:
        answer = f"{parity.equal} of {parity.compared} greedy tokens are the same over {', '.join(names)}"
        return grade(answer, step.expected, None, state, metrics, details)
    if parity.equal == parity.compared:
        answer = "the tokens with an id are the same, the text is not"
    else:
        place = parity.equal
        first, second = ([*map(str, answer.token_ids), "nothing"][place] for answer in answers)
        answer = (
            f"token {place + 1} of {parity.compared} differs: {first} on the coordinator alone, "
            f"{second} over {', '.join(names)}"
        )
    return TrialResult(Outcome.FAILED, answer, step.expected, state, None, metrics, details)
