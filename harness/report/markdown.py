"""A run's short status in the founding report's form: summary, test results, issues found, recommendations.

CommonMark; every line comes from the run's records. Text of a log, a node or a model is escaped.
"""

import re
from collections.abc import Iterator

from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.contracts.run_records import Outcome, Trial, Verdict
from harness.report.data import RunData
from harness.report.format import printable, seconds, size, utc
from harness.report.sections.verdict import MARKS, heat_of, question

_SPECIAL = re.compile(r"([\\`*\[\]<>&~|]|(?<!\w)_|_(?!\w))")
_BLOCK = re.compile(r"^(\d{1,9}(?=[.)](?:\s|$)))?([#+=.)-])")
"""What opens a heading, a list or a rule at the start of a line."""
_LINK = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)
"""Where GitHub makes a link of bare text."""
_WORDS = {Verdict.YES: "yes", Verdict.NO: "no", Verdict.PARTLY: "partly", Verdict.UNKNOWN: "not known"}


def render_markdown(run: RunData) -> str:
    """The status."""
    parts = [*_summary(run), *_results(run), *_issues(run), *_recommendations(run)]
    return "\n".join(parts).rstrip() + "\n"


def safe(text: object) -> str:
    """Text that stands in a line as it is: no markup, no HTML, no line of its own."""
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
    yield f"# Distributed inference status: {safe(manifest.run)}"
    yield ""
    yield "## Summary"
    yield ""
    outcome = MARKS[manifest.outcome][1] if manifest.outcome else "without a recorded end"
    counts = {one: sum(t.outcome is one for t in run.trials) for one in Outcome}
    told = ", ".join(f"{count} {MARKS[one][1]}" for one, count in counts.items() if count)
    yield f"- Run {outcome}: {told or 'no trial ended'}"
    yield f"- {utc(manifest.started_ns)}, inventory {safe(manifest.inventory)}, {len(manifest.nodes)} nodes"
    builds = sorted({f"{node.build} ({node.commit or '?'})" for node in manifest.nodes if node.build})
    yield f"- llama.cpp {safe(', '.join(builds) or 'not recorded')}"
    for asked in manifest.questions:
        yield f"- {safe(asked.text)} **{_WORDS[asked.verdict]}**: {safe(asked.answer)}"
    yield ""


def _results(run: RunData) -> Iterator[str]:
    yield "## Test results"
    yield ""
    for trial in run.trials:
        symbol, word = MARKS[trial.outcome]
        expected = f", as expected: {safe(trial.expected)}" if trial.expected else ""
        length = trial.metrics.get("prompt_tokens")
        yield f"### {safe(question(trial, int(length) if length else None))}"
        yield ""
        yield f"**Status**: {symbol} {word}{expected}"
        yield ""
        yield f"- Trial: {safe(trial.id)}"
        yield f"- Result: {safe(trial.answer)}"
        for line in _figures(trial):
            yield f"- {line}"
        yield ""


def _figures(trial: Trial) -> Iterator[str]:
    if "load_s" in trial.metrics:
        heat = heat_of(trial)
        yield f"Load: {seconds(trial.metrics['load_s'])}{f' ({heat})' if heat else ''}"
    state = trial.coordinator
    if state and state.plan:
        each = ", ".join(f"{safe(share.node)} {share.layers} layers" for share in state.plan.shares)
        yield f"Plan: {each}"
    swapped = {node: peak.get("rpc_swap_bytes", 0) for node, peak in trial.peak.items()}
    held = [f"{safe(node)} {size(value)}" for node, value in swapped.items() if value]
    if swapped:
        yield f"Backends in swap at most: {', '.join(held) or 'none'}"


def _diagnosed(run: RunData) -> Iterator[tuple[Trial, Diagnosis]]:
    for trial in run.trials:
        found = trial.diagnosis
        if found and (trial.outcome is Outcome.FAILED or found.failure_class is not FailureClass.STOPPED):
            yield trial, found


def _issues(run: RunData) -> Iterator[str]:
    yield "## Issues found"
    yield ""
    found = list(_diagnosed(run))
    failed = [t for t in run.trials if t.outcome is Outcome.FAILED and t.diagnosis is None]
    if not found and not failed:
        yield "None: no trial failed, and no process ended otherwise than it was told to."
        yield ""
    for trial, diagnosis in found:
        yield f"### {safe(diagnosis.failure_class)} in {safe(trial.id)}"
        yield ""
        yield f"- Confidence: {diagnosis.confidence}"
        for line in diagnosis.ruled_out:
            yield f"- Ruled out: {safe(line)}"
        for evidence in diagnosis.evidence[:3]:
            yield f"- Evidence, {safe(evidence.source)}:"
            yield ""
            yield _code(evidence.line)
            yield ""
        yield ""
    for trial in failed:
        yield f"- {safe(trial.id)}: {safe(trial.answer)}"
    yield ""


def _recommendations(run: RunData) -> Iterator[str]:
    yield "## Recommendations"
    yield ""
    advice = dict.fromkeys(d.advice for _, d in _diagnosed(run) if d.advice)
    for number, line in enumerate(advice, start=1):
        yield f"{number}. {safe(line)}"
    if not advice:
        yield "None follows from this run."
