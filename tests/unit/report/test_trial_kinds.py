"""Parity, soaks, faults and intervals in the page, from the recorded run of every kind."""

from pathlib import Path
from typing import Any

import pytest
from harness.report.data import load_run
from harness.report.figures.inference import scaling_figure, scaling_panels
from harness.report.page import write_report
from harness.report.sections.failures import event_rows, fault_rows
from harness.report.sections.inference import parity_rows, soak_rows, stage_rows
from harness.report.sections.verdict import verdict_section
from tests.unit.report_runs import KINDS, RECORDED, change_lines, copy_run


def failing_run(folder: Path) -> Path:
    """The recorded run of every kind: its parity fails; its soak has an error, a restart and a drift."""
    run = copy_run(folder, KINDS)

    def change(trial: dict[str, Any]) -> None:
        details, metrics = trial["details"], trial["metrics"]
        if trial["kind"] == "parity":
            trial["outcome"] = "failed"
            metrics |= {"tokens_compared": 32, "tokens_equal": 3, "largest_logprob_gap": 0.004}
            details["reference"]["text"] = "The cat sat on the mat."
            details["seen"]["text"] = "The cat ran <b>away</b>."
        if trial["kind"] == "soak":
            metrics |= {"errors": 1.0, "restarts": 1.0}
            details["errors"] = {"HTTP 503": 1}
            drift = {"percent_per_hour": -12.5, "low": -20.0, "high": -5.0, "beyond_noise": True}
            details["rate_drift"] |= drift

    change_lines(run, "trials", change)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return failing_run(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(failing_run(tmp_path_factory.mktemp("failing"))).read_text()


def test_parity_shows_where_the_texts_differ(run: Path, page: str) -> None:
    (row,) = parity_rows(load_run(run))
    assert (row["compared"], row["equal"], row["gap"], row["mark"].outcome) == (32, 3, 0.004, "failed")
    assert row["reference"][: row["common"]] == "The cat "
    assert '<mark class="part">ran &lt;b&gt;away&lt;/b&gt;.</mark>' in page
    assert f'href="#parity-{row["anchor"]}"' in page


def test_soak_shows_its_drifts_with_their_intervals(run: Path, page: str) -> None:
    (row,) = soak_rows(load_run(run))
    assert (row.requests, row.failed, row.restarts, row.errors) == (12, 1, 1, [("HTTP 503", 1)])
    rate, memory, _ = row.drifts
    assert (rate["per_hour"], rate["low"], rate["high"]) == (-12.5, -20.0, -5.0)
    assert (rate["what"], rate["beyond_noise"]) == ("tokens/s", True)
    assert (memory["what"], memory["colour"], memory["beyond_noise"]) == ("node1", 0, False)
    assert len(row.rates) == 12
    assert all(0 <= second <= row.took_s for second, _ in row.rates)
    assert "-12.5 %" in page
    assert "-20.0 % to -5.0 %" in page


def test_fault_is_shown_beside_its_diagnosis_and_on_the_timeline(run: Path) -> None:
    change_lines(run, "events", lambda event: event.update(kind="run_start"))
    data = load_run(run)
    (row,) = fault_rows(data)
    assert (row["fault"], row["node"], row["moment"], row["colour"]) == ("kill", "node1", "idle", 0)
    assert (row["expected"], row["diagnosed"]) == ("backend_lost", "backend_lost")
    (moment,) = [m for m in event_rows(data) if m.kind == "fault"]
    assert (moment.trial, moment.node) == (row["trial"], "node1")
    assert "kill" in moment.text
    (question,) = [r["question"] for r in verdict_section(data)["rows"] if r["anchor"] == row["anchor"]]
    assert "kill on node1" in question


def test_medians_carry_their_interval_where_there_are_three_values() -> None:
    rows = {row.trial: row for row in stage_rows(load_run(RECORDED))}
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
    by_length = scaling_panels(stage_rows(load_run(RECORDED)))
    assert [(panel.x, list(panel.series)) for panel in by_length] == [
        ("prompt (tokens)", ["smollm2-sharded"]),
        ("prompt (tokens)", ["smollm2-sharded"]),
    ]
    run = copy_run(tmp_path)
    change_lines(
        run, "trials", lambda t: t["metrics"].update(concurrency=4.0) if t["id"].startswith("05") else None
    )
    change_lines(run, "requests", lambda request: request.update(prompt_tokens=48))
    crowded = scaling_panels(stage_rows(load_run(run)))
    assert {panel.x for panel in crowded} == {"requests at once"}
    assert [p.x for p in crowded[0].series["smollm2-sharded, 48 in"]] == [1, 4]
    drawn = scaling_figure(crowded)
    assert drawn is not None
    assert "output of all (tokens/s) by requests at once" in drawn.wide
    assert scaling_figure([]) is None


def test_recorded_run_of_every_kind_is_complete_in_the_page(tmp_path: Path) -> None:
    run = copy_run(tmp_path, KINDS)
    data = load_run(run)
    (parity,), (soak,), (fault,) = parity_rows(data), soak_rows(data), fault_rows(data)
    assert (parity["compared"], parity["equal"]) == (24, 24)
    assert parity["reference"] == parity["backends"]
    assert (soak.requests, soak.failed, soak.restarts) == (12, 0, 0)
    assert [drift["what"] for drift in soak.drifts] == ["tokens/s", "node1", "node2"]
    assert (fault["fault"], fault["node"], fault["diagnosed"]) == ("kill", "node1", "backend_lost")
    series = {panel.y: list(panel.series) for panel in scaling_panels(stage_rows(data))}
    assert "smollm2-sharded, 48 in" in series["output of all (tokens/s)"]
    assert "smollm2-sharded" in series["decode rate (tokens/s)"]
    page = write_report(run).read_text()
    for anchor in ("parity-08", "soak-07", "fault-10", "question-1"):
        assert f'id="{anchor}' in page
