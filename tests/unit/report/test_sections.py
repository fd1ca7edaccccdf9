"""Rows of the sections, from the recorded run and from copies with one thing changed."""

import re
from pathlib import Path

import pytest
from harness.report.data import RunData, load_run
from harness.report.page import write_report
from harness.report.sections.cluster import cluster_section, layer_range, unit_rows
from harness.report.sections.failures import end_rows, event_rows
from harness.report.sections.inference import stage_rows
from harness.report.sections.loads import load_rows, plan_tables
from harness.report.sections.method import method_section
from harness.report.sections.verdict import verdict_section
from harness.trials.run_spec import FORMULAS
from tests.unit.report_runs import RECORDED, change_lines, change_manifest, copy_run

MIB = 1 << 20


@pytest.fixture(scope="module")
def recorded() -> RunData:
    return load_run(RECORDED)


def test_headline_counts_the_outcomes(recorded: RunData) -> None:
    verdict = verdict_section(recorded)
    assert re.findall(r"\d+ \w+", verdict["headline"]) == ["10 trials", "9 passed", "1 failed"]
    assert verdict["rows"][9]["mark"].symbol == "✕"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (0, ["pool", "smollm2"]),
        (1, ["load", "smollm2-sharded", "2 backends", "cold"]),
        (2, ["fast", "smollm2-sharded", "48 tokens"]),
        (5, ["end", "smollm2-sharded"]),
        (6, ["-ngl 0", "cold"]),
    ],
)
def test_question_of_a_trial_holds_its_parameters(recorded: RunData, place: int, words: list[str]) -> None:
    question = verdict_section(recorded)["rows"][place]["question"]
    assert [word for word in words if word not in question] == []
    assert question.endswith("?")


def test_starved_load_says_its_limit_in_gib(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    starved = {"node": "node1", "memory": 1536 * MIB}
    change_lines(run, "trials", lambda trial: trial["details"].update(starved=starved))
    question = verdict_section(load_run(run))["rows"][1]["question"]
    assert "node1" in question
    assert "1.50 GiB" in question


def test_questions_come_first_and_link_to_their_trials(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    ids = [trial.id for trial in load_run(run).trials]
    questions = [
        {"id": "q1", "text": "Does it load?", "answer": "in 1.1 s", "verdict": "yes", "trials": ids[1:2]},
        {"id": "q2", "text": "Does it stay up?", "answer": "no", "verdict": "partly", "trials": ["gone"]},
    ]
    change_manifest(run, lambda m: m.update(questions=questions))
    first, second = verdict_section(load_run(run))["questions"]
    assert (first["mark"].word, first["evidence"]) == ("yes", [(ids[1], f"trial-{ids[1]}")])
    assert (second["mark"].symbol, second["evidence"]) == ("◐", [("gone", None)])
    page = write_report(run).read_text()
    assert page.index("Does it load?") < page.index("Trial by trial")
    assert f'<a href="#trial-{ids[1]}">{ids[1]}</a>' in page


def test_method_says_how_the_trials_ran_and_how_to_run_them_again(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: m.update(command=["harness", "run", "full"], seed=7, stopped="deadline"))
    method = method_section(load_run(run))
    rows = dict(method["ran"])
    assert method["command"] == "harness run full --seed 7"
    assert "seed 7" in rows["Order"]
    assert re.findall(r"\d+", rows["Repeats"]) == ["2", "3", "8"]
    assert rows["Left out"] == "deadline"
    assert len(method["flags"]) == 4
    assert all("--tensor-split" in line or "-ngl" in line for _, line in method["flags"])
    change_manifest(run, lambda m: m.update(command=["harness", "run", "full", "--seed", "7"]))
    assert method_section(load_run(run))["command"] == "harness run full --seed 7"


def test_docs_repeat_the_formulas_of_the_code() -> None:
    text = (Path(__file__).parents[3] / "docs" / "trials.md").read_text()
    table = text[text.index("| Figure | Formula |") :].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, flags=re.MULTILINE)
    assert len(rows) >= 10
    assert {name: formula for name, formula in rows if FORMULAS[name] != formula} == {}


def test_page_shows_the_formulas_that_the_run_carries(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: m.update(formulas={"load_s": "as measured then"}))
    formulas = dict(method_section(load_run(run))["formulas"])
    assert formulas["load_s"] == "as measured then"
    assert "16.0 MiB" in formulas["rpc-server swap"]
    assert "ttft_s" not in formulas


def test_layers_are_counted_from_one_without_gaps(recorded: RunData) -> None:
    (whole, kept) = cluster_section(recorded)["placements"]
    assert [box["layers"] for box in whole["boxes"]] == ["layers 1–16", "layers 17–31"]
    assert {box["source"] for box in whole["boxes"]} == {"reported by llama.cpp"}
    assert kept["distributed"] is False
    assert kept["local_bytes"] > 90 * MIB
    assert [box["bytes"] for box in kept["boxes"]] == [0, 0]
    assert layer_range(81, 1) == "layer 81"


def test_different_builds_are_reported(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: m["nodes"][1].update(build=6666))
    cluster = cluster_section(load_run(run))
    assert cluster["mixed"]
    assert all(word in cluster["uniform"] for word in ("node1", "6751", "node2", "6666"))


def test_different_binaries_of_one_build_are_reported(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: m["nodes"][1].update(binaries={"rpc-server": "ab" * 32}))
    assert cluster_section(load_run(run))["mixed"]


def test_units_show_their_exposure_limits_and_restarts(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    rpc = {"ActiveState": "active", "SubState": "running", "NRestarts": "2", "User": "llama-rpc"}
    limits = {"MemoryHigh": "infinity", "MemoryMax": str(2 << 30), "MemorySwapMax": str(2**64 - 1)}
    services = {"llama-rpc-server.service": rpc | limits, "llama-router.service": {"ActiveState": "failed"}}
    scores = {"llama-rpc-server.service": 1.0, "llama-router.service": 9.2}
    change_manifest(run, lambda m: m["nodes"][0].update(units=services, exposure=scores))
    router, backend = unit_rows(load_run(run))
    assert (router["good"], router["rating"], router["settings"]) == (False, "open", [])
    assert (backend["state"], backend["restarts"], backend["rating"]) == ("active (running)", 2, "closed")
    assert backend["settings"] == [("user", "llama-rpc"), ("memory", "max 2.00 GiB")]


def test_link_shows_its_rate_and_its_source(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: m["nodes"][0].update(link_bits_per_s=1e9, link_source="token bucket"))
    change_manifest(run, lambda m: m["nodes"][1].update(interface="host0"))
    rows = cluster_section(load_run(run))["rows"]
    assert "1 Gbit/s" in rows[0]["link"]
    assert "tc" in rows[0]["link"]
    assert rows[1]["link"].startswith("host0")


def test_head_and_pool_come_from_the_groups(recorded: RunData, tmp_path: Path) -> None:
    cluster = cluster_section(recorded)
    assert (cluster["head"], cluster["pool"]) == ("node2", ["node2"])
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: [node.update(groups=["backends"]) for node in m["nodes"]])
    without = load_run(run)
    assert without.manifest.head is None
    assert cluster_section(without)["pool"] == []


def test_placement_boxes_hold_text_that_can_be_selected(tmp_path: Path) -> None:
    page = write_report(copy_run(tmp_path)).read_text()
    box = page[page.index('<div class="placement">') :]
    text = re.sub(r"<[^>]+>", " ", box[: box.index("</ul>")])
    assert all(word in text for word in ("Router", "Coordinator", "Pool", "layers 1–16", "layers 17–31"))
    assert re.search(r'class="bar"><span style="width:\d+\.\d%"', box)


def test_first_token_of_a_load_is_the_recorded_figure(recorded: RunData) -> None:
    trials = {trial.id: trial for trial in recorded.trials}
    for row in load_rows(recorded):
        assert row.canary_s == trials[row.trial].metrics.get("canary_s")


def test_phases_and_rest_add_up_to_the_load_time(recorded: RunData) -> None:
    rows = [row for row in load_rows(recorded) if row.load_s and row.phases]
    assert len(rows) == 4
    for row in rows:
        assert sum(seconds for _, seconds in row.phases) == pytest.approx(row.load_s, rel=0.02)
        assert [phase for phase, _ in row.phases][:3] == ["connect", "open", "transfer"]


def test_plan_is_compared_with_the_buffers_that_llama_cpp_printed(recorded: RunData) -> None:
    table = plan_tables(recorded)[0]
    assert table["distributed"]
    assert [row["layers"] for row in table["rows"]] == [16, 15]
    reported = sum(sum(row["reported"]) for row in table["rows"])
    assert table["total_reported"] == reported
    assert table["total_off"] == pytest.approx(reported / table["total_planned"] - 1)


def test_warm_ups_and_canaries_are_left_out(recorded: RunData) -> None:
    rows = {row.trial: row for row in stage_rows(recorded)}
    assert rows["03-smollm2-sharded-inference-48x3"].requests == 3
    assert "02-smollm2-sharded-cold-load" not in rows


def test_client_and_server_count_the_same_gaps(recorded: RunData) -> None:
    row = next(r for r in stage_rows(recorded) if r.trial.startswith("05"))
    assert row.apart is not None
    assert abs(row.apart) < 0.1
    assert len(row.gaps) == 2 * 15


def test_every_end_has_its_class_and_the_line_that_decides(recorded: RunData) -> None:
    rows = {row["diagnosis"].failure_class: row for row in end_rows(recorded)}
    assert set(rows) == {"backend_lost", "stopped_busy", "not_distributed", "stopped"}
    lost = rows["backend_lost"]
    assert (lost["exit"], lost["expected"], lost["signals"]) == ("SIGABRT (134)", False, [])
    _, excerpt = lost["evidence"][0]
    assert excerpt is not None
    (deciding,) = [line.text for line in excerpt.lines if line.deciding]
    assert "Remote RPC server crashed or returned malformed response" in deciding
    assert rows["stopped_busy"]["expected"]
    assert rows["stopped"]["orderly"]


def test_unexpected_ends_come_first(recorded: RunData) -> None:
    assert end_rows(recorded)[0]["diagnosis"].failure_class == "backend_lost"
    assert end_rows(recorded)[-1]["diagnosis"].failure_class == "stopped"


def test_signals_and_exits_are_listed_once_and_in_order(recorded: RunData) -> None:
    moments = event_rows(recorded)
    assert [m.time_ns for m in moments] == sorted(m.time_ns for m in moments)
    assert [m.kind for m in moments].count("signal") == 3
    assert any("SIGTERM" in m.text and "1 request in flight" in m.text for m in moments)


def test_random_weights_are_named_as_such(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    assert [row["real"] for row in method_section(load_run(run))["models"]] == ["real", ""]
    assert not any("random weights" in warning for warning in method_section(load_run(run))["warnings"])
    change_manifest(run, lambda m: m["models"]["smollm2-sharded"].update(synthetic=True))
    method = method_section(load_run(run))
    assert method["models"][0]["real"] == "synthetic"
    assert any("smollm2-sharded" in w and "random weights" in w for w in method["warnings"])
