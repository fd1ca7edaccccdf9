"""The parity trial: do the backends compute what one machine computes?"""

from dataclasses import dataclass

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.run_records import Outcome, Request
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import LoadRequest, RouterRefusedError
from harness.trials.context import Context, Finding, judge
from harness.trials.kinds.coordinator_steps import any_late, diagnose_requests, ended_state, keep_log, stop
from harness.trials.kinds.load import refused, undistributed
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


def compare(reference: Request, seen: Request) -> Parity:
    """Token by token, up to the first that differs; a token that one of them lacks differs."""
    pairs = list(zip(reference.token_ids, seen.token_ids, strict=False))
    compared = max(len(reference.token_ids), len(seen.token_ids))
    equal = next((place for place, (one, other) in enumerate(pairs) if one != other), len(pairs))
    gaps = [
        abs(one - other)
        for one, other in zip(reference.logprobs[:equal], seen.logprobs[:equal], strict=False)
    ]
    return Parity(compared, equal, reference.text == seen.text, max(gaps, default=None))


async def run_parity(ctx: Context, trial: str, step: ParityStep) -> Finding:
    """Answer once on the coordinator alone and once over the backends; passes when every token is the same.

    Both loads have the same flags. The first is the reference: no layer is offloaded, so that no backend
    takes part in it.
    """
    nodes = ctx.backends(step.nodes)
    if nodes is None:
        have = len(ctx.inventory.backends)
        return Finding(Outcome.SKIPPED, f"the inventory has {have} backends, the trial asks for {step.nodes}")
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
            flags=tuple(step.flags),
            context=step.context,
            deadline_s=step.deadline_s,
        )
        try:
            state = await ctx.router.load(request)
        except RouterRefusedError as refusal:
            return await refused(ctx, trial, step.expected, refusal, {"nodes": names})
        states.append(state)
        if alone and (state.report is None or state.report.offloaded):
            return Finding(
                Outcome.FAILED, "the reference is not of the coordinator alone", step.expected, state
            )
        answers.append(await _answer(ctx, trial, step, index=len(answers)))
        if wrong := _wrong(answers[-1], step):
            return await _failed(ctx, step, answers[-1], wrong)
        await keep_log(ctx, state)
    await stop(ctx, trial)
    return _found(step, names, answers, states[1])


async def _answer(ctx: Context, trial: str, step: ParityStep, *, index: int) -> Request:
    ask = ChatRequest(
        step.model, step.prompt, step.tokens, step.deadline_s, trial=trial, index=index, extra=LOGPROBS
    )
    seen = await ctx.router.chat(ask)
    ctx.run.append_request(seen)
    return seen


def _wrong(seen: Request, step: ParityStep) -> str | None:
    if seen.error:
        return seen.error
    if seen.route != "coordinator":
        return f"{step.model} was answered by the {seen.route}, not by the coordinator"
    if seen.completion_tokens != step.tokens:
        return f"{seen.completion_tokens} tokens came, {step.tokens} were asked for"
    return None if seen.token_ids else "the server names no token by its id"


async def _failed(ctx: Context, step: ParityStep, seen: Request, wrong: str) -> Finding:
    state = await ended_state(ctx, late=any_late([seen]))
    diagnosis = diagnose_requests(state, [seen], wrong)
    outcome, answer = judge(diagnosis, step.expected, wrong)
    return Finding(outcome, answer, step.expected, state, diagnosis)


def _found(step: ParityStep, names: list[str], answers: list[Request], state: CoordinatorState) -> Finding:
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
        outcome, answer = judge(gap, step.expected, "the second load was not over the backends")
        return Finding(outcome, answer, step.expected, state, gap, metrics, details)
    if parity.same:
        answer = f"{parity.equal} of {parity.compared} greedy tokens are the same over {', '.join(names)}"
        outcome, answer = judge(None, step.expected, answer)
        return Finding(outcome, answer, step.expected, state, None, metrics, details)
    if parity.equal == parity.compared:
        answer = "the tokens with an id are the same, the text is not"
        return Finding(Outcome.FAILED, answer, step.expected, state, None, metrics, details)
    answer = (
        f"token {parity.equal + 1} of {parity.compared} differs: {_at(alone, parity.equal)} on the "
        f"coordinator alone, {_at(over, parity.equal)} over {', '.join(names)}"
    )
    return Finding(Outcome.FAILED, answer, step.expected, state, None, metrics, details)


def _at(seen: Request, place: int) -> str:
    return str(seen.token_ids[place]) if place < len(seen.token_ids) else "nothing"
