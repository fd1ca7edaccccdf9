"""What rounds of llama-bench over several backends prove of a release, and what each round's end means."""

import json
from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from harness.llama.releases.loopback import how_ended
from harness.llama.releases.standstill import Look

GENERATED = 32
REPETITIONS = 5
"""Tokens, and how often in a round, as in the report of the hang."""
PROMPT = 64


class Outcome(StrEnum):
    """How a round ended."""

    TOKENS = "tokens"
    HANG = "hang"
    SLOW = "slow"
    """Past its deadline, but something was still going on."""
    CRASH = "crash"
    NOT_DISTRIBUTED = "not_distributed"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Speeds(_Record):
    """Means over llama-bench's repetitions."""

    prompt_tokens_per_s: float
    decode_tokens_per_s: float


class Round(_Record):
    """One llama-bench over all backends."""

    number: int
    outcome: Outcome
    seconds: float
    speeds: Speeds | None = None
    said: str = ""
    """What was seen, where it gave no tokens."""
    look: Look | None = None
    log: tuple[str, ...] = ()
    """The last lines of llama-bench's log."""

    def line(self) -> str:
        """The round as it is told while the gate runs."""
        told = f"round {self.number}: {self.seconds:.1f} s"
        if self.speeds is None:
            return f"{told}, {self.said}"
        prompt, decode = self.speeds.prompt_tokens_per_s, self.speeds.decode_tokens_per_s
        return f"{told}, {decode:.1f} tokens/s (prompt {prompt:.0f})"


class Proof(_Record):
    """All rounds, up to the first that gave no tokens."""

    build: int
    backends: int
    rounds_asked: int
    deadline_s: float
    model: str
    rounds: tuple[Round, ...]
    logs: str | None = None
    """Folder with every log, kept where a round gave no tokens."""

    @property
    def passed(self) -> bool:
        """Whether every round that was asked for gave tokens."""
        return len(self.rounds) == self.rounds_asked and all(one.speeds for one in self.rounds)

    def verdict(self) -> str:
        """One line."""
        good = [one for one in self.rounds if one.speeds]
        told = f"llama.cpp {self.build} over {self.backends} backends: "
        told += f"{len(good)} of {self.rounds_asked} rounds gave tokens"
        if self.passed:
            return f"{told}, slowest {max(one.seconds for one in good):.1f} s"
        return f"{told}; round {self.rounds[-1].number} did not: {self.rounds[-1].said}"

    def evidence(self) -> list[str]:
        """What the last round's verdict rests on, line by line; nothing where it gave tokens."""
        last = self.rounds[-1]
        seen = last.look.lines() if last.look else []
        logged = [f"llama-bench: {line}" for line in last.log]
        return [] if last.speeds else [*seen, *logged, *([f"logs: {self.logs}"] if self.logs else [])]


def read_speeds(report: str) -> Speeds | None:
    """Speeds in what llama-bench printed; None where it holds no tokens of both kinds."""
    try:
        tests = json.loads(report)
        rates = {(t["n_prompt"], t["n_gen"]): float(t["avg_ts"]) for t in tests if t.get("n_depth", 0) == 0}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    prompt, decode = rates.get((PROMPT, 0), 0.0), rates.get((0, GENERATED), 0.0)
    if prompt <= 0 or decode <= 0:
        return None
    return Speeds(prompt_tokens_per_s=prompt, decode_tokens_per_s=decode)


def judge_late(look: Look, ended: Sequence[str], deadline_s: float) -> tuple[Outcome, str]:
    """What it means that a round has not ended by its deadline.

    Args:
        ended: backends that have ended, and how.
    """
    late = f"no end after {deadline_s:g} s"
    if ended:
        return Outcome.CRASH, f"{ended[0]}; llama-bench: {late}"
    used = f"its processes used {look.used_s:.2f} s of processor time in {look.window_s:g} s"
    if look.standstill:
        return Outcome.HANG, f"a hang: {late}, and {used}, none of them about to run"
    return Outcome.SLOW, f"slow, not a hang: {late}, and {used}; --deadline gives it more time"


def judge_ended(
    code: int, ended: Sequence[str], speeds: Speeds | None, holding: int, backends: int
) -> tuple[Outcome, str]:
    """What it means that a round has ended.

    Args:
        code: llama-bench's return code.
        ended: backends that have ended, and how.
        holding: backends that hold part of the model, where every layer is on some backend; else 0.
    """
    if ended or code:
        return Outcome.CRASH, "; ".join([*([f"llama-bench {how_ended(code)}"] if code else []), *ended])
    if speeds is None:
        return Outcome.CRASH, "llama-bench ended and reported no tokens"
    if holding < backends:
        return (
            Outcome.NOT_DISTRIBUTED,
            f"not every layer was on the backends: {holding} of {backends} held any",
        )
    return Outcome.TOKENS, ""
