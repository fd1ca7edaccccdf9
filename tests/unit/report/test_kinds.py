"""Parity, soaks, faults and intervals in the page, from trials as their kinds record them."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness.report import write_report
from harness.report.data import RunData, load_run
from harness.report.figures.scaling import panels, scaling_figure
from harness.report.sections.failures import moments
from harness.report.sections.inference import stages
from harness.report.sections.kinds import faults, parities, soaks
from harness.report.sections.verdict import verdict
from tests.unit.report_runs import KINDS, RECORDED, copy_run

PARITY = {
    "kind": "parity",
    "id": "11-smollm2-parity",
    "metrics": {"tokens_compared": 32, "tokens_equal": 3, "largest_logprob_gap": 0.004},
    "details": {
        "reference": {"text": "The cat sat on the mat.", "token_ids": [1], "where": "the coordinator alone"},
        "seen": {"text": "The cat ran <b>away</b>.", "token_ids": [1], "where": "node1, node2"},
    },
}
SOAK = {
    "kind": "soak",
    "metrics": {"requests": 3.0, "errors": 1.0, "restarts": 1.0},
    "details": {
        "errors": {"HTTP 503": 1},
        "rate_drift": {"percent_per_hour": -12.5, "low": -20.0, "high": -5.0, "beyond_noise": True},
        "memory_drift": {
            "node1": {"bytes_per_hour": 2.0**20, "low": -1.0, "high": 2.0**21, "beyond_noise": False}
        },
    },
}
FAULT = {
    "kind": "fault",
    "id": "12-kill-backend",
    "expected": "backend_lost",
    "details": {"fault": "kill", "node": "node1", "moment": "decode", "undone_ns": None},
}


def add(run: Path, change: dict[str, Any], like: int) -> None:
    """Append a trial like one that was recorded, changed."""
    path = run / "trials.jsonl"
    record = json.loads(path.read_text().splitlines()[like]) | change
    with path.open("a") as stream:
        stream.write(json.dumps(record) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The recorded run with a parity and a fault trial added, its first inference trial told as a soak."""
    run = copy_run(tmp_path)
    lines = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    lines[2] |= SOAK
    (run / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    add(run, PARITY | {"outcome": "failed", "coordinator": None, "diagnosis": None, "expected": None}, 2)
    injected = lines[9]["started_ns"] + 10**9
    add(run, FAULT | {"details": FAULT["details"] | {"injected_ns": injected}}, 9)  # type: ignore[operator]
    return run


def data(run: Path) -> RunData:
    return load_run(run)


def test_parity_shows_where_the_texts_part(run: Path) -> None:
    (row,) = parities(data(run))
    assert (row.compared, row.equal, row.gap, row.mark.outcome) == (32, 3, 0.004, "failed")
    assert row.reference[: row.alike] == "The cat "
    page = write_report(run).read_text()
    assert '<mark class="part">ran &lt;b&gt;away&lt;/b&gt;.</mark>' in page
    assert 'href="#parity-11-smollm2-parity"' in page


def test_soak_shows_what_drifts_with_its_interval(run: Path) -> None:
    (row,) = soaks(data(run))
    assert (row.requests, row.failed, row.restarts, row.errors) == (3, 1, 1, [("HTTP 503", 1)])
    rate, memory = row.drifts
    assert (rate.per_hour, rate.low, rate.high, rate.beyond_noise, rate.percent) == (
        *(-12.5, -20.0, -5.0),
        *(True, True),
    )
    assert (memory.what, memory.colour, memory.beyond_noise, memory.percent) == ("node1", 0, False, False)
    assert len(row.rates) == 3
    assert all(0 <= second <= row.took_s for second, _ in row.rates)
    page = write_report(run).read_text()
    assert "-12.5 %</td>" in page
    assert "-20.0 % to -5.0 %" in page
    assert "Decode rate over each soak" in page


def test_fault_stands_beside_its_diagnosis_and_on_the_timeline(run: Path) -> None:
    (row,) = faults(data(run))
    assert (row.fault, row.node, row.moment, row.colour) == ("kill", "node1", "decode", 0)
    assert (row.expected, row.seen) == ("backend_lost", "backend_lost")
    told = [m for m in moments(data(run)) if m.kind == "fault" and m.trial == row.trial]
    assert [(m.node, m.text) for m in told] == [("node1", "kill injected")]
    questions = [r.question for r in verdict(data(run)).rows]
    assert "Is kill on node1 told for what it is?" in questions


def test_medians_carry_their_interval_where_there_are_three_values() -> None:
    rows = {row.trial: row for row in stages(load_run(RECORDED))}
    three, two = (
        rows[f"0{n}"] for n in ("3-smollm2-sharded-inference-48x3", "5-smollm2-sharded-inference-512x2")
    )
    assert three.ttft is not None
    assert three.ttft.low is not None
    assert three.ttft.low <= three.ttft.median <= (three.ttft.high or 0)
    assert two.ttft is not None
    assert two.ttft.low is None
    assert len(two.ttft.values) == 2


def test_speed_is_drawn_over_what_differs_and_over_nothing_else(tmp_path: Path) -> None:
    found = panels(stages(load_run(RECORDED)))
    assert [(panel.x, list(panel.series)) for panel in found] == [
        ("prompt (tokens)", ["smollm2-sharded"]),
        ("prompt (tokens)", ["smollm2-sharded"]),
    ]
    run = copy_run(tmp_path)
    lines = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    lines[4]["metrics"]["concurrency"] = 4.0
    (run / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    requests = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
    for request in requests:
        request["prompt_tokens"] = 48
    (run / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in requests))
    crowded = panels(stages(load_run(run)))
    assert {panel.x for panel in crowded} == {"requests at once"}
    assert [p.x for p in crowded[0].series["smollm2-sharded, 48 in"]] == [1, 4]
    drawn = scaling_figure(crowded)
    assert drawn is not None
    assert "output of all (tokens/s) by requests at once" in drawn.wide
    assert scaling_figure([]) is None


def test_recorded_run_of_every_kind_is_shown_whole(tmp_path: Path) -> None:
    run = copy_run(tmp_path, KINDS)
    found = load_run(run)
    (parity,), (soak,), (fault,) = parities(found), soaks(found), faults(found)
    assert (parity.compared, parity.equal, parity.reference == parity.seen) == (24, 24, True)
    assert (soak.requests, soak.failed, soak.restarts) == (12, 0, 0)
    assert [drift.what for drift in soak.drifts] == ["tokens/s", "node1", "node2"]
    assert (fault.fault, fault.node, fault.expected, fault.seen) == ("kill", "node1", *["backend_lost"] * 2)
    drawn = {panel.y: list(panel.series) for panel in panels(stages(found))}
    assert "smollm2-sharded, 48 in" in drawn["output of all (tokens/s)"]
    assert "smollm2-sharded" in drawn["decode rate (tokens/s)"]
    asked = [(q.mark.word, q.text) for q in verdict(found).questions]
    assert ("yes", "Does smollm2-sharded answer without a crash?") in asked
    page = write_report(run).read_text()
    for anchor in ("parity-08", "soak-07", "fault-10", "question-1"):
        assert f'id="{anchor}' in page
