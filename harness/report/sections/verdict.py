"""Section 1: the run's questions and their answers."""

from dataclasses import dataclass
from typing import Any

from harness.contracts.run_records import Outcome, Question, Trial
from harness.contracts.run_records import Verdict as Answer
from harness.report.data import Row, RunData
from harness.report.format import rate, seconds, size, slug, swap
from harness.runs.metrics import most_backend_swap

MARKS = {
    Outcome.PASSED: ("✓", "passed"),
    Outcome.FAILED: ("✕", "failed"),
    Outcome.SKIPPED: ("–", "skipped"),
    Outcome.INTERRUPTED: ("‖", "interrupted"),
}
ANSWERS = {Answer.YES: "✓", Answer.NO: "✕", Answer.PARTLY: "◐", Answer.UNKNOWN: "?"}


@dataclass(frozen=True)
class Mark:
    """An outcome that is readable without colour: a symbol and a word."""

    outcome: str
    symbol: str
    word: str


def verdict_section(run: RunData) -> Row:
    """The run in one sentence, its questions, and the question and answer of each trial."""
    return {
        "mark": outcome_mark(run.manifest.outcome or Outcome.INTERRUPTED),
        "headline": _headline(run),
        "questions": [_question_row(run, number, q) for number, q in enumerate(run.manifest.questions, 1)],
        "rows": [_row(run, number, trial) for number, trial in enumerate(run.trials, 1)],
    }


def outcome_mark(outcome: Outcome) -> Mark:
    """Symbol and word of an outcome."""
    return Mark(outcome.value, *MARKS[outcome])


def outcome_counts(trials: list[Trial]) -> list[str]:
    """``9 passed``, ``1 failed``: how many trials ended in each way."""
    counts = {outcome: sum(t.outcome is outcome for t in trials) for outcome in Outcome}
    return [f"{count} {MARKS[outcome][1]}" for outcome, count in counts.items() if count]


def _question_row(run: RunData, number: int, question: Question) -> Row:
    trials = {trial.id for trial in run.trials}
    return {
        "anchor": f"question-{number}",
        "text": question.text,
        "answer": question.answer,
        "mark": Mark(f"answer-{question.verdict.value}", ANSWERS[question.verdict], question.verdict.value),
        # Trials that answer it; those of another run, which this page does not show, have no anchor.
        "evidence": [(name, f"trial-{slug(name)}" if name in trials else None) for name in question.trials],
    }


def _headline(run: RunData) -> str:
    total, counts = len(run.trials), outcome_counts(run.trials)
    if not total:
        return "No trial ended in this run."
    if total == 1:
        text = f"The one trial {MARKS[run.trials[0].outcome][1]}"
    elif len(counts) == 1 and run.trials[0].outcome is Outcome.PASSED:
        text = f"All {total} trials passed"
    else:
        text = f"Of {total} trials, {', '.join(counts)}"
    if run.manifest.outcome is None:
        text += "; the run has no recorded end: it was killed or is still going on"
    elif run.manifest.outcome is Outcome.INTERRUPTED:
        text += "; the run was interrupted and holds what had finished"
    return text + "."


def _row(run: RunData, number: int, trial: Trial) -> Row:
    lengths = {r.prompt_tokens for r in run.requests if r.trial == trial.id and not r.warmup}
    return {
        "number": number,
        "anchor": slug(trial.id),
        "question": trial_question(trial, lengths.pop() if len(lengths) == 1 else None),
        "answer": trial.answer,
        "mark": outcome_mark(trial.outcome),
        "expected": trial.expected,
        "figures": _figures(trial),
        "evidence": _evidence(run, trial),
    }


def trial_question(trial: Trial, prompt_tokens: int | None = None) -> str:
    """The question that a trial of this kind asks."""
    model = trial.model
    if trial.kind == "load":
        return _load_question(trial)
    if trial.kind == "fault":
        fault, node = trial.details.get("fault", "a fault"), trial.details.get("node")
        return f"Does the diagnosis name {fault}{f' on {node}' if node else ''}?"
    length = f" prompts of {prompt_tokens} tokens" if prompt_tokens else ""
    concurrency = int(trial.metrics.get("concurrency", 1))
    length += f", {concurrency} at once," if concurrency > 1 else ""
    return {
        "pool": f"Does the pool answer with {model}, and how fast?",
        "inference": f"How fast does {model} answer{length} over the backends?",
        "unload": f"Does the coordinator of {model} end when asked?",
        "parity": f"Does {model} answer the same over the backends as on one node?",
        "soak": f"Does {model} keep answering, at the same speed and in the same memory?",
    }.get(trial.kind, f"{model}: {trial.kind}")


def _load_question(trial: Trial) -> str:
    plan = trial.coordinator.plan if trial.coordinator else None
    nodes = trial.details.get("nodes")
    count = len(nodes) if isinstance(nodes, list) else len(plan.shares) if plan else 0
    over = f"{count} backend{'s' if count != 1 else ''}" if count else "the backends"
    state = cache_state(trial)
    conditions = f", from {state} caches" if state else ""
    if starved := detail_dict(trial.details, "starved"):
        limit = starved.get("memory")
        limit = size(limit) if isinstance(limit, int) else limit
        conditions += f", with {starved.get('node')} limited to {limit}"
    if plan and plan.n_gpu_layers == 0:
        return f"What does {trial.model} need where no layer is offloaded (-ngl 0{conditions})?"
    return f"Does {trial.model} load over {over}{conditions}?"


def cache_state(trial: Trial) -> str:
    """``cold`` or ``warm`` for a load; empty where neither is claimed."""
    # A load that broke off early has no details: its name says it.
    words = (trial.details.get("cache"), *trial.id.split("-"))
    return next((state for state in ("cold", "warm") if state in words), "")


def detail_dict(details: dict[str, Any], key: str) -> dict[str, Any]:
    """A detail that is a table; empty where it is missing or something else."""
    value = details.get(key)
    return value if isinstance(value, dict) else {}


def _figures(trial: Trial) -> list[tuple[str, str]]:
    metrics = trial.metrics
    figures = [
        (label, form(metrics[key]))
        for key, label, form in (
            ("load_s", "load", seconds),
            ("ttft_s_median", "TTFT", seconds),
            ("tpot_s_median", "TPOT", seconds),
            ("decode_tokens_per_s_median", "decode", rate),
        )
        if key in metrics
    ]
    swap_bytes = most_backend_swap([trial])
    if swap_bytes is not None and trial.kind != "unload":
        figures.append(("rpc-server swap", swap(swap_bytes)))
    return figures


def _evidence(run: RunData, trial: Trial) -> list[tuple[str, str]]:
    """Text and anchor of each place in the page that holds evidence."""
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
