"""What rounds of llama-bench over several backends prove of a release, and how each round is judged."""

import json
from collections.abc import Sequence
from enum import StrEnum

from harness.contracts import Record
from harness.release_proof.activity import Activity
from harness.release_proof.local import how_ended

GENERATED = 32
REPETITIONS = 5
"""Tokens, and how often in a round, as in the report of the hang."""
PROMPT = 64


class Outcome(StrEnum):
    """How a round ended."""

    TOKENS = "tokens"
    HANG = "hang"
    SLOW = "slow"
    """Past its deadline, but some thread still worked."""
    CRASH = "crash"
    NOT_DISTRIBUTED = "not_distributed"


class Speeds(Record, frozen=True):
    """Means over llama-bench's repetitions."""

    prompt_tokens_per_s: float
    decode_tokens_per_s: float


class Round(Record, frozen=True):
    """One llama-bench over all backends."""

    number: int
    outcome: Outcome
    seconds: float
    speeds: Speeds | None = None
    said: str = ""
    """Why it gave no tokens."""
    look: Activity | None = None
    log: tuple[str, ...] = ()
    """The last lines of llama-bench's log."""

    def line(self) -> str:
        """The round in one line."""
        text = f"round {self.number}: {self.seconds:.1f} s"
        if self.speeds is None:
            return f"{text}, {self.said}"
        prompt, decode = self.speeds.prompt_tokens_per_s, self.speeds.decode_tokens_per_s
        return f"{text}, {decode:.1f} tokens/s (prompt {prompt:.0f})"


class Proof(Record, frozen=True):
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
        """Whether every requested round gave tokens."""
        return len(self.rounds) == self.rounds_asked and all(each.speeds for each in self.rounds)

    def verdict(self) -> str:
        """One line."""
        good = [each for each in self.rounds if each.speeds]
        text = f"llama.cpp {self.build} over {self.backends} backends: "
        text += f"{len(good)} of {self.rounds_asked} rounds gave tokens"
        if self.passed:
            return f"{text}, slowest {max(each.seconds for each in good):.1f} s"
        return f"{text}; round {self.rounds[-1].number} did not: {self.rounds[-1].said}"

    def evidence(self) -> list[str]:
        """Why the last round gave no tokens, line by line; empty where it did."""
        last = self.rounds[-1]
        if last.speeds:
            return []
        activity = last.look.lines() if last.look else []
        log = [f"llama-bench: {line}" for line in last.log]
        return [*activity, *log, *([f"logs: {self.logs}"] if self.logs else [])]


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


def judge_late(activity: Activity, ended: Sequence[str], deadline_s: float) -> tuple[Outcome, str]:
    """Outcome and reason of a round that has not ended by its deadline.

    Args:
        ended: backends that have ended, and how.
    """
    late = f"no end after {deadline_s:g} s"
    if ended:
        return Outcome.CRASH, f"{ended[0]}; llama-bench: {late}"
    used = f"its processes used {activity.used_s:.2f} s of processor time in {activity.window_s:g} s"
    if activity.hung:
        return Outcome.HANG, f"a hang: {late}, and {used}, none of them about to run"
    return Outcome.SLOW, f"slow, not a hang: {late}, and {used}; --deadline gives it more time"


def judge_ended(
    code: int, ended: Sequence[str], speeds: Speeds | None, holding: int, backends: int
) -> tuple[Outcome, str]:
    """Outcome and reason of a round that has ended.

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
