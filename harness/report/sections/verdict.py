"""Section 1: the run's questions and their answers."""

from dataclasses import dataclass

from harness.contracts.run_records import Outcome, Question, Trial
from harness.contracts.run_records import Verdict as Answer
from harness.report.data import RunData
from harness.report.format import rate, seconds, size, slug

MARKS = {
    Outcome.PASSED: ("✓", "passed"),
    Outcome.FAILED: ("✕", "failed"),
    Outcome.SKIPPED: ("–", "skipped"),
    Outcome.INTERRUPTED: ("‖", "interrupted"),
}
ANSWERS = {Answer.YES: "✓", Answer.NO: "✕", Answer.PARTLY: "◐", Answer.UNKNOWN: "?"}


@dataclass(frozen=True)
class Mark:
    """An outcome for eyes that see no colour: a symbol and a word."""

    outcome: str
    symbol: str
    word: str


@dataclass(frozen=True)
class VerdictRow:
    """One trial's question and answer."""

    number: int
    trial: str
    anchor: str
    question: str
    answer: str
    mark: Mark
    expected: str | None
    figures: list[tuple[str, str]]
    evidence: list[tuple[str, str]]
    """Text and anchor of each place in the page that holds the evidence."""


@dataclass(frozen=True)
class QuestionRow:
    """One of the run's questions."""

    anchor: str
    text: str
    answer: str
    mark: Mark
    evidence: list[tuple[str, str | None]]
    """Name of each trial that answers it, and the anchor where this run holds that trial."""


@dataclass(frozen=True)
class Verdict:
    """The whole run in one sentence, then question by question, then trial by trial."""

    mark: Mark
    headline: str
    questions: list[QuestionRow]
    rows: list[VerdictRow]


def verdict(run: RunData) -> Verdict:
    """What the run was asked and what it answers."""
    rows = [_row(run, number, trial) for number, trial in enumerate(run.trials, 1)]
    counts = {outcome: sum(t.outcome is outcome for t in run.trials) for outcome in Outcome}
    overall = run.manifest.outcome or Outcome.INTERRUPTED
    asked = [_question_row(run, number, one) for number, one in enumerate(run.manifest.questions, 1)]
    return Verdict(mark(overall), _headline(run, counts), asked, rows)


def mark(outcome: Outcome) -> Mark:
    """Symbol and word of an outcome."""
    symbol, word = MARKS[outcome]
    return Mark(outcome.value, symbol, word)


def _question_row(run: RunData, number: int, one: Question) -> QuestionRow:
    known = {trial.id for trial in run.trials}
    return QuestionRow(
        anchor=f"question-{number}",
        text=one.text,
        answer=one.answer,
        mark=Mark(f"answer-{one.verdict.value}", ANSWERS[one.verdict], one.verdict.value),
        evidence=[(trial, f"trial-{slug(trial)}" if trial in known else None) for trial in one.trials],
    )


def _headline(run: RunData, counts: dict[Outcome, int]) -> str:
    total = len(run.trials)
    if not total:
        return "No trial ended in this run."
    if counts[Outcome.PASSED] == total:
        text = f"All {total} trials passed" if total > 1 else "The one trial passed"
    else:
        parts = [f"{counts[o]} {MARKS[o][1]}" for o in Outcome if counts[o]]
        text = f"Of {total} trials, {', '.join(parts)}" if total > 1 else f"The one trial {parts[0][2:]}"
    if run.manifest.outcome is None:
        text += "; the run has no recorded end: it was killed or is still going on"
    elif run.manifest.outcome is Outcome.INTERRUPTED:
        text += "; the run was interrupted and holds what had finished"
    return text + "."


def _row(run: RunData, number: int, trial: Trial) -> VerdictRow:
    return VerdictRow(
        number=number,
        trial=trial.id,
        anchor=slug(trial.id),
        question=question(trial, _prompt_length(run, trial)),
        answer=trial.answer,
        mark=mark(trial.outcome),
        expected=trial.expected,
        figures=_figures(trial),
        evidence=_evidence(run, trial),
    )


def question(trial: Trial, prompt_tokens: int | None = None) -> str:
    """The question that a trial of this kind asks."""
    if trial.kind == "load":
        return _load_question(trial)
    length = f" prompts of {prompt_tokens} tokens" if prompt_tokens else ""
    streams = int(trial.metrics.get("concurrency", 1))
    length += f", {streams} at once," if streams > 1 else ""
    return {
        "pool": f"Does the pool answer with {trial.model}, and how fast?",
        "inference": f"How fast does {trial.model} answer{length} over the backends?",
        "unload": f"Does the coordinator of {trial.model} end when asked?",
        "parity": f"Does {trial.model} say the same over the backends as on one node?",
        "soak": f"Does {trial.model} keep answering, at the same speed and in the same memory?",
        "fault": _fault_question(trial),
    }.get(trial.kind, f"{trial.model}: {trial.kind}")


def _fault_question(trial: Trial) -> str:
    fault, node = trial.details.get("fault", "a fault"), trial.details.get("node")
    return f"Is {fault}{f' on {node}' if node else ''} told for what it is?"


def _load_question(trial: Trial) -> str:
    plan = trial.coordinator.plan if trial.coordinator else None
    nodes = trial.details.get("nodes")
    count = len(nodes) if isinstance(nodes, list) else len(plan.shares) if plan else 0
    over = f"{count} backend{'s' if count != 1 else ''}" if count else "the backends"
    heat = heat_of(trial)
    after = f", from {heat} caches" if heat else ""
    starved = trial.details.get("starved")
    if isinstance(starved, dict):
        after += f", with {starved.get('node')} held to {starved.get('memory')}"
    if plan and plan.n_gpu_layers == 0:
        return f"What does {trial.model} take where no layer is offloaded (-ngl 0{after})?"
    return f"Does {trial.model} load over {over}{after}?"


def heat_of(trial: Trial) -> str:
    """``cold`` or ``warm`` for a load; empty where neither is claimed."""
    # A load that broke off early has no details: its name tells.
    said = (trial.details.get("cache"), *trial.id.split("-"))
    return next((heat for heat in ("cold", "warm") if heat in said), "")


def _prompt_length(run: RunData, trial: Trial) -> int | None:
    lengths = {r.prompt_tokens for r in run.requests if r.trial == trial.id and not r.warmup}
    return lengths.pop() if len(lengths) == 1 else None


def _figures(trial: Trial) -> list[tuple[str, str]]:
    shown: list[tuple[str, str]] = []
    for key, name in (("load_s", "load"), ("ttft_s_median", "TTFT"), ("tpot_s_median", "TPOT")):
        if key in trial.metrics:
            shown.append((name, seconds(trial.metrics[key])))
    if "decode_tokens_per_s_median" in trial.metrics:
        shown.append(("decode", rate(trial.metrics["decode_tokens_per_s_median"])))
    swapped = max((p.get("swap_bytes", 0) for p in trial.peak.values()), default=None)
    if swapped is not None and trial.kind != "unload":
        shown.append(("peak swap", size(swapped) if swapped else "none"))
    return shown


def _evidence(run: RunData, trial: Trial) -> list[tuple[str, str]]:
    anchor = slug(trial.id)
    links: list[tuple[str, str]] = []
    if trial.kind == "load" and trial.coordinator:
        links.append(("load", f"load-{anchor}"))
    if trial.kind in ("parity", "soak", "fault"):
        links.append((trial.kind, f"{trial.kind}-{anchor}"))
    if any(r.trial == trial.id and not r.warmup for r in run.requests):
        links.append(("requests", f"inference-{anchor}"))
    if trial.diagnosis or (trial.coordinator and trial.coordinator.diagnosis):
        links.append(("diagnosis", f"end-{anchor}"))
    if run.samples:
        links.append(("memory", "memory"))
    return links
