"""Runs side by side: what counts as worse, what as noise, and what as another trial."""

import json
import re
from html import unescape
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import pytest
from harness.cli import main
from harness.contracts.run_records import Outcome, Request, RunManifest, Trial
from harness.errors import HarnessError
from harness.report.changes import rows
from harness.report.compare_page import render_comparison
from harness.report.data import load_run
from harness.report.figures.compare import _ticks, compare_figure
from harness.report.markdown import render_markdown, safe
from harness.report.previous_run import since_last
from harness.runs.compare import RunFigures, compare, figures_of, read_figures, slower, tried, untold
from markdown_it import MarkdownIt
from tests.unit.report_runs import HOSTILE, RECORDED, change_lines, change_manifest, copy_run, hostile_run

INFERENCE = {"kind": "inference", "model": "m", "prompt_tokens": 35, "generated_tokens": 8, "repeats": 5}


def manifest(run: str, **more: Any) -> RunManifest:
    base: dict[str, Any] = {"run": run, "profile": "p", "profile_text": "", "inventory": "i", "started_ns": 0}
    return RunManifest.model_validate({**base, "harness_version": "1", "command": [], **more})


def figures(run: str, rates: list[float], *, outcome: Outcome = Outcome.PASSED, **step: Any) -> RunFigures:
    """A run of one inference trial, a request at each rate."""
    asked = {**INFERENCE, **step}
    base: dict[str, Any] = {"id": "01-x", "kind": "inference", "model": "m", "started_ns": 0, "ended_ns": 1}
    details = {"step": json.dumps(asked)}
    trial = Trial.model_validate({**base, "outcome": outcome, "answer": "", "details": details})
    requests = [
        Request(
            trial="01-x",
            index=index,
            route="coordinator",
            model="m",
            sent_ns=0,
            token_ns=[10**9, 10**9 + round(1e9 / rate)],
            completion_tokens=2,
        )
        for index, rate in enumerate(rates)
    ]
    return figures_of(manifest(run), [trial], requests)


STEADY = [10.0, 10.1, 9.9, 10.05, 9.95]


def verdicts(*runs: RunFigures) -> dict[str, str]:
    return {one.figure.name: one.verdict for one in compare(runs).changes}


def test_lower_rate_is_worse_a_higher_one_better_and_a_close_one_noise() -> None:
    before = figures("a", STEADY)
    slow = verdicts(before, figures("b", [rate * 0.8 for rate in STEADY]))
    assert (slow["decode_tokens_per_s"], slow["tpot_s"], slow["ttft_s"]) == ("worse", "worse", "same")
    assert verdicts(before, figures("b", [rate * 1.3 for rate in STEADY]))["decode_tokens_per_s"] == "better"
    assert verdicts(before, figures("b", [rate * 1.001 for rate in STEADY]))["decode_tokens_per_s"] == "same"


def test_regressions_come_first_and_only_those_beyond_the_share_fail() -> None:
    found = compare([figures("a", STEADY), figures("b", [rate * 0.8 for rate in STEADY])])
    assert found.changes[0].verdict == "worse"
    assert {one.figure.name for one in slower(found, 0.05)} == {"decode_tokens_per_s", "tpot_s"}
    assert slower(found, 0.5) == []
    assert found.changes[0].worse_by == pytest.approx(0.25)


def test_two_values_are_never_told_from_noise() -> None:
    found = compare([figures("a", [10.0, 10.1]), figures("b", [1.0, 1.1])])
    assert slower(found, 0.05) == []
    assert untold(found) == len(found.changes) > 0


def test_other_lengths_are_another_trial_but_repeats_and_new_keys_are_not() -> None:
    assert compare([figures("a", STEADY), figures("b", STEADY, prompt_tokens=512)]).changes == []
    same = figures("b", STEADY, repeats=3, concurrency=1, limits={"ttft_s": 1})
    assert compare([figures("a", STEADY), same]).changes != []
    assert tried(figures("a", STEADY).trials[0]) == "inference m generated_tokens 8 prompt_tokens 35"


def test_trial_that_fails_now_is_worse_and_has_no_figures() -> None:
    found = compare([figures("a", STEADY), figures("b", STEADY, outcome=Outcome.FAILED)])
    assert found.changes == []
    ((change),) = found.outcomes
    assert (change.before, change.after, change.worse) == ("1 passed", "1 failed", True)


def test_other_surroundings_are_named() -> None:
    node = {"name": "n", "address": "10.0.0.1", "groups": [], "build": 6751}
    runs = [
        RunFigures(manifest("a", nodes=[node]), [], {}),
        RunFigures(manifest("b", nodes=[{**node, "build": 6792}], inventory="other"), [], {}),
    ]
    assert compare(runs).surroundings == [
        "b: inventory other, not i",
        "b: llama.cpp of n 6792, not 6751",
    ]


def test_other_plans_and_flags_of_the_same_load_are_named(tmp_path: Path) -> None:
    def change(trial: dict[str, Any]) -> None:
        if state := trial["coordinator"]:
            state["argv"] = [*(word for word in state["argv"] if word != "--no-webui"), "--no-repack"]
            state["plan"]["shares"][0]["layers"] = 3

    later = later_run(tmp_path)
    change_lines(later, "trials", change)
    found = compare([read_figures(tmp_path / RECORDED.name), read_figures(later)]).surroundings
    cold = "later: load smollm2-sharded-cold-load"
    assert f"{cold} placed node1 3, node2 15, not node1 16, node2 15" in found
    assert f"{cold} with --no-repack set, not none" in found
    assert f"{cold} with --no-webui none, not set" in found


def test_runs_on_equal_terms_have_nothing_else_to_name(tmp_path: Path) -> None:
    later = later_run(tmp_path)
    assert compare([read_figures(tmp_path / RECORDED.name), read_figures(later)]).surroundings == []


def type_in(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def later_run(target: Path, change: Any = None) -> Path:
    """The recorded run and, a day later, one that is the same but for ``change`` of its requests."""
    copy_run(target)
    copied = copy_run(target / "x")
    later = copied.rename(target / "later")

    def rename(content: dict[str, Any]) -> None:
        content["run"], content["started_ns"] = "later", content["started_ns"] + 86400 * 10**9

    change_manifest(later, rename)
    if change:
        change_lines(later, "requests", change)
    return later


def slow_down(request: dict[str, Any]) -> None:
    tokens = request["token_ns"]
    request["token_ns"] = [tokens[0] + 3 * (one - tokens[0]) for one in tokens]


def test_page_of_two_runs_holds_every_change_and_ci_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = later_run(tmp_path, slow_down)
    page = tmp_path / "page.html"
    typed = ["compare", str(tmp_path / RECORDED.name), str(later), "--output", str(page)]
    assert type_in(monkeypatch, *typed) == 0
    text = unescape(page.read_text())
    for change in compare([read_figures(tmp_path / RECORDED.name), read_figures(later)]).changes:
        assert change.what in text
        assert change.figure.label in text
    capsys.readouterr()
    assert type_in(monkeypatch, *typed, "--fail-if-slower", "5%") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"worse than {RECORDED.name}: inference smollm2-sharded-inference-48x3 " in line
    assert "decode by 200%" in line
    assert "TTFT" not in line, "the first tokens came as before"
    assert type_in(monkeypatch, *typed, "--fail-if-slower", "250%") == 0


def test_ci_is_not_told_that_all_is_well_where_nothing_could_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = later_run(tmp_path)
    typed = [
        str(tmp_path / RECORDED.name),
        str(later),
        "--output",
        str(tmp_path / "p"),
        "--fail-if-slower",
        "5%",
    ]
    for run in (tmp_path / RECORDED.name, later):
        (run / "requests.jsonl").write_text("")
    assert type_in(monkeypatch, "compare", *typed) == 1
    assert "can be told from noise" in capsys.readouterr().err


def test_trial_that_the_same_profile_did_not_get_to_is_lost_and_ci_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = later_run(tmp_path)
    trials = later / "trials.jsonl"
    trials.write_text("".join(trials.read_text().splitlines(keepends=True)[:1]))
    typed = [str(tmp_path / RECORDED.name), str(later), "--output", str(tmp_path / "p")]
    assert type_in(monkeypatch, "compare", *typed, "--fail-if-slower", "5%") == 1
    assert "(not tried, was 1 passed)" in capsys.readouterr().err
    change_manifest(later, lambda content: content.update(profile="p", profile_text="another"))
    found = compare([read_figures(tmp_path / RECORDED.name), read_figures(later)])
    assert {one.after for one in found.outcomes} == {"not tried"}
    assert not any(one.worse for one in found.outcomes), "another profile may ask for less"


def test_swap_where_there_was_none_comes_first_and_fails(tmp_path: Path) -> None:
    def swapped(size: int) -> Any:
        def change(trial: dict[str, Any]) -> None:
            trial |= {"kind": "load", "model": "m", "outcome": "passed", "details": {"step": "{}"}}
            trial["peak"] = {"node1": {"rpc_swap_bytes": size}}

        return change

    later = later_run(tmp_path)
    change_lines(later, "trials", swapped(3 << 30))
    before = tmp_path / RECORDED.name
    change_lines(before, "trials", swapped(1 << 20))
    found = compare([read_figures(before), read_figures(later)])
    assert (found.changes[0].figure.name, found.changes[0].verdict) == ("swap_bytes", "worse")
    assert slower(found, 0.05)[0].figure.name == "swap_bytes"
    row = rows(found.changes)[0]
    assert (row.before.split()[0], row.ratio, row.interval) == ("0", "∞", "∞ to ∞")
    change_lines(later, "trials", swapped(15 << 20))
    found = compare([read_figures(before), read_figures(later)])
    assert "swap_bytes" not in {one.figure.name for one in found.changes if one.verdict != "same"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "give two runs at least"),
        (["{run}", "{run}"], "cannot be compared with itself"),
        (["{run}", "nowhere"], "no run 'nowhere'"),
        (["{run}", "{run}", "--fail-if-slower", "much"], "--fail-if-slower much: give a percentage"),
    ],
)
def test_wrong_comparison_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = [argument.format(run=RECORDED) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["harness", "compare", *typed])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_report_says_what_changed_since_the_last_run(tmp_path: Path) -> None:
    assert since_last(load_run(later_run(tmp_path / "same"))) is not None
    same = since_last(load_run(tmp_path / "same" / "later"))
    assert same is not None
    assert (same.run, same.rows, same.outcomes) == (RECORDED.name, [], [])
    assert same.compared > 0
    assert since_last(load_run(tmp_path / "same" / RECORDED.name)) is None, "nothing came before it"


def test_last_run_is_the_latest_that_began_before_whatever_its_folder_is_called(tmp_path: Path) -> None:
    later = later_run(tmp_path)
    older = tmp_path / "zz-example"
    (tmp_path / RECORDED.name).rename(older)
    middle = later_run(tmp_path / "y").rename(tmp_path / "aa-middle")
    change_manifest(middle, lambda content: content.update(started_ns=content["started_ns"] - 3600 * 10**9))
    found = since_last(load_run(later))
    assert found is not None
    assert found.run == "aa-middle"
    (middle / "trials.jsonl").write_text("damaged\n")
    found = since_last(load_run(later))
    assert found is not None
    assert found.run == "zz-example", "a run that cannot be read does not stand in the way"


@pytest.mark.parametrize(
    "text",
    ["# a", "- a", "+ a", "1. a", "12) a", "---", "> a", "| a |", "<b>a</b>", "[a](b)", "![a](b)", "a_b_"],
)
def test_text_in_markdown_opens_nothing_wherever_it_stands(text: str) -> None:
    plain = MarkdownIt("commonmark").render(f"- {safe(text)}")
    assert re.findall(r"<[^>]*>", plain) == ["<ul>", "<li>", "</li>", "</ul>"]
    assert unescape(re.sub(r"<[^>]*>|\n", "", plain)) == text


def test_addresses_in_hostile_text_become_no_links() -> None:
    assert safe("http://a.example www.a.example") == "http\\://a.example www\\.a.example"


def test_markdown_has_the_founding_reports_parts_and_every_trial(tmp_path: Path) -> None:
    text = render_markdown(load_run(copy_run(tmp_path)))
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Summary",
        "Test results",
        "Issues found",
        "Recommendations",
    ]
    for line in (RECORDED / "trials.jsonl").read_text().splitlines():
        assert safe(json.loads(line)["id"]) in text


def test_hostile_text_stays_text_in_markdown(tmp_path: Path) -> None:
    text = render_markdown(load_run(hostile_run(tmp_path)))
    fenced = re.compile(r"^(`{3,})\n.*?\n\1$", re.MULTILINE | re.DOTALL)
    outside = fenced.sub("", text)
    assert "<script" not in re.sub(r"\\<", "", outside)
    assert "\x1b" not in text
    assert safe(HOSTILE) in outside
    assert safe("# a *b* [c](d) `e` <f> _g_ h_i") == "\\# a \\*b\\* \\[c\\](d) \\`e\\` \\<f\\> \\_g\\_ h_i"


def test_comparison_with_itself_through_the_library_is_all_noise() -> None:
    run = figures("a", STEADY)
    assert set(verdicts(run, run).values()) == {"same"}
    with pytest.raises(HarnessError, match=r"run\.json"):
        read_figures(Path("/nowhere"))


def test_page_draws_each_ratio_with_its_interval_and_none_without() -> None:
    before = figures("a", STEADY)
    found = compare([before, figures("b", [rate * 0.8 for rate in STEADY])])
    drawn = compare_figure(found.changes)
    assert drawn
    for svg in (drawn.wide, drawn.narrow):
        assert "decode, inference m generated_tokens 8 prompt_tokens 35: 0.8, worse" in svg
        assert "var(--bad)" in svg
    assert compare_figure(compare([figures("a", [10.0]), figures("b", [9.0])]).changes) is None
    assert "figure-compare-wide" in render_comparison(found)


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
