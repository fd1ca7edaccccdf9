"""The page of a comparison, and the part of a report that compares it with the previous run."""

import re
from itertools import pairwise
from math import log
from pathlib import Path

import pytest
from harness.report.data import load_run
from harness.report.figures.compare import _ticks, compare_figure
from harness.report.page import render_comparison
from harness.report.sections.changes import change_rows, compare_with_previous
from harness.runs.compare import Change, Figure, compare, read_figures
from harness.runs.statistics import difference, spread
from tests.unit.report_runs import RECORDED, change_manifest, later_run, slow_down


def test_report_says_what_changed_since_the_last_run(tmp_path: Path) -> None:
    assert compare_with_previous(load_run(later_run(tmp_path / "same"))) is not None
    same = compare_with_previous(load_run(tmp_path / "same" / "later"))
    assert same is not None
    assert (same["run"], same["rows"], same["outcomes"]) == (RECORDED.name, [], [])
    assert same["compared"] > 0
    assert compare_with_previous(load_run(tmp_path / "same" / RECORDED.name)) is None, (
        "nothing came before it"
    )


def test_last_run_is_the_latest_that_began_before_whatever_its_folder_is_called(tmp_path: Path) -> None:
    later = later_run(tmp_path)
    older = tmp_path / "zz-example"
    (tmp_path / RECORDED.name).rename(older)
    middle = later_run(tmp_path / "y").rename(tmp_path / "aa-middle")
    change_manifest(middle, lambda content: content.update(started_ns=content["started_ns"] - 3600 * 10**9))
    found = compare_with_previous(load_run(later))
    assert found is not None
    assert found["run"] == "aa-middle"
    (middle / "trials.jsonl").write_text("damaged\n")
    found = compare_with_previous(load_run(later))
    assert found is not None
    assert found["run"] == "zz-example", "a run that cannot be read does not stand in the way"


def test_page_draws_each_ratio_with_its_interval_and_none_without(tmp_path: Path) -> None:
    later = later_run(tmp_path, slow_down)
    found = compare([read_figures(tmp_path / RECORDED.name), read_figures(later)])
    drawn = compare_figure(found.changes)
    assert drawn
    for svg in (drawn.wide, drawn.narrow):
        assert re.search(r"decode, inference smollm2-sharded-inference-48x3[^:;]*: 0\.333, worse", svg)
        assert "var(--bad)" in svg
    assert "figure-compare-wide" in render_comparison(found)
    assert compare_figure([change for change in found.changes if change.difference.low is None]) is None


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.95, 1.05),
        (0.49, 1.05),
        (0.95, 2.04),
        (0.79, 1.35),
        (0.95, 50),
        (0.02, 1.05),
        (0.95, 1e6),
        (1e-4, 1e4),
    ],
)
def test_ticks_of_any_ratio_are_few_apart_and_reach_the_ends(low: float, high: float) -> None:
    ticks, length = _ticks(low, high), log(high / low)
    assert 2 <= len(ticks) <= 9
    assert 1 in ticks
    assert all(log(right / left) > 0.06 * length for left, right in pairwise(ticks))
    assert log(ticks[0] / low) < 0.5 * length
    assert log(high / ticks[-1]) < 0.5 * length


def test_growth_from_zero_is_an_infinite_ratio() -> None:
    load = Figure("swap_bytes", "swap", "bytes", "lower")
    none, some = spread([0.0] * 3), spread([2.0**30] * 3)
    grown = difference([0.0] * 3, [2.0**30] * 3)
    assert none
    assert some
    assert grown
    (row,) = change_rows([Change("load m", load, "later", none, some, grown)])
    assert (row.before.split()[0], row.ratio, row.interval) == ("0", "∞", "∞ to ∞")
