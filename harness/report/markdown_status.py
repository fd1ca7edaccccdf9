"""A run's short status as Markdown: summary, test results, issues found, recommendations.

CommonMark; every line comes from the run's records. Text of a log, a node or a model is escaped.
"""

import re
from collections.abc import Iterator

from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.contracts.run_records import Outcome, Trial, Verdict
from harness.report.data import RunData
from harness.report.format import printable, seconds, utc
from harness.report.sections.verdict import (
    MARKS,
    cache_state,
    outcome_counts,
    trial_question,
)
from harness.runs.metrics import describe_backend_swap

_SPECIAL = re.compile(r"([\\`*\[\]<>&~|]|(?<!\w)_|_(?!\w))")
_BLOCK = re.compile(r"^(\d{1,9}(?=[.)](?:\s|$)))?([#+=.)-])")
"""Opens a heading, a list or a rule at the start of a line."""
_LINK = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)
"""Where GitHub makes a link of bare text."""
_WORDS = {Verdict.YES: "yes", Verdict.NO: "no", Verdict.PARTLY: "partly", Verdict.UNKNOWN: "not known"}


def render_markdown(run: RunData) -> str:
    """The status of a run."""
    parts = [*_summary(run), *_results(run), *_issues(run), *_recommendations(run)]
    return "\n".join(parts).rstrip() + "\n"


def escape(text: object) -> str:
    """Text of one line without markup, HTML or line breaks."""
    line = " ".join(printable(str(text)).split())
    line = _LINK.sub(r"\\\g<0>", _SPECIAL.sub(r"\\\1", line))
    return _BLOCK.sub(r"\1\\\2", line)


def _code(text: str) -> str:
    """A line of a log as a code block, whatever it holds."""
    clean = printable(text).replace("\n", " ")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", clean)), default=0))
    return f"{fence}\n{clean}\n{fence}"


def _summary(run: RunData) -> Iterator[str]:
    manifest = run.manifest
    yield f"# Distributed inference status: {escape(manifest.run)}"
    yield ""
    yield "## Summary"
    yield ""
    outcome = MARKS[manifest.outcome][1] if manifest.outcome else "without a recorded end"
    yield f"- Run {outcome}: {', '.join(outcome_counts(run.trials)) or 'no trial ended'}"
    yield f"- {utc(manifest.started_ns)}, inventory {escape(manifest.inventory)}, {len(manifest.nodes)} nodes"
    builds = sorted({f"{node.build} ({node.commit or '?'})" for node in manifest.nodes if node.build})
    yield f"- llama.cpp {escape(', '.join(builds) or 'not recorded')}"
    for question in manifest.questions:
        yield f"- {escape(question.text)} **{_WORDS[question.verdict]}**: {escape(question.answer)}"
    yield ""


def _results(run: RunData) -> Iterator[str]:
    yield "## Test results"
    yield ""
    for trial in run.trials:
        symbol, word = MARKS[trial.outcome]
        expected = f", as expected: {escape(trial.expected)}" if trial.expected else ""
        length = trial.metrics.get("prompt_tokens")
        yield f"### {escape(trial_question(trial, int(length) if length else None))}"
        yield ""
        yield f"**Status**: {symbol} {word}{expected}"
        yield ""
        yield f"- Trial: {escape(trial.id)}"
        yield f"- Result: {escape(trial.answer)}"
        for line in _figures(trial):
            yield f"- {line}"
        yield ""


def _figures(trial: Trial) -> Iterator[str]:
    if "load_s" in trial.metrics:
        cache = cache_state(trial)
        yield f"Load: {seconds(trial.metrics['load_s'])}{f' ({cache})' if cache else ''}"
    state = trial.coordinator
    if state and state.plan:
        each = ", ".join(f"{escape(share.node)} {share.layers} layers" for share in state.plan.shares)
        yield f"Plan: {each}"
    if trial.peak and trial.kind != "unload":
        yield f"Swap: {escape(describe_backend_swap([trial]))}"


def _diagnosed(run: RunData) -> Iterator[tuple[Trial, Diagnosis]]:
    for trial in run.trials:
        diagnosis = trial.diagnosis
        if diagnosis and (
            trial.outcome is Outcome.FAILED or diagnosis.failure_class is not FailureClass.STOPPED
        ):
            yield trial, diagnosis


def _issues(run: RunData) -> Iterator[str]:
    yield "## Issues found"
    yield ""
    diagnosed = list(_diagnosed(run))
    failed = [t for t in run.trials if t.outcome is Outcome.FAILED and t.diagnosis is None]
    if not diagnosed and not failed:
        yield "None: no trial failed, and no process ended unexpectedly."
        yield ""
    for trial, diagnosis in diagnosed:
        yield f"### {escape(diagnosis.failure_class)} in {escape(trial.id)}"
        yield ""
        yield f"- Confidence: {diagnosis.confidence}"
        for line in diagnosis.ruled_out:
            yield f"- Ruled out: {escape(line)}"
        for evidence in diagnosis.evidence[:3]:
            yield f"- Evidence, {escape(evidence.source)}:"
            yield ""
            yield _code(evidence.line)
            yield ""
        yield ""
    for trial in failed:
        yield f"- {escape(trial.id)}: {escape(trial.answer)}"
    yield ""


def _recommendations(run: RunData) -> Iterator[str]:
    yield "## Recommendations"
    yield ""
    advice = dict.fromkeys(d.advice for _, d in _diagnosed(run) if d.advice)
    for number, line in enumerate(advice, start=1):
        yield f"{number}. {escape(line)}"
    if not advice:
        yield "None."
