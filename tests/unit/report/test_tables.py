"""What the sections say of the recorded run, and of runs made for one question."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness.errors import HarnessError
from harness.report import write_report
from harness.report.data import RunData, load_run
from harness.report.figures.placement import placement_figure
from harness.report.sections.cluster import cluster, layer_range
from harness.report.sections.failures import ends, moments
from harness.report.sections.inference import stages
from harness.report.sections.loads import loads, plan_tables
from harness.report.sections.memory import envelope, peaks
from harness.report.sections.method import method
from harness.report.sections.units import units
from harness.report.sections.verdict import verdict
from harness.report.series import NodeSeries
from harness.runs.pack import pack
from tests.unit.report_runs import RECORDED, change_lines, change_manifest, copy_run

MIB = 1 << 20


@pytest.fixture(scope="module")
def recorded() -> RunData:
    return load_run(RECORDED)


def test_verdict_counts_and_asks(recorded: RunData) -> None:
    found = verdict(recorded)
    assert found.headline == "Of 10 trials, 9 passed, 1 failed."
    assert found.rows[1].question == "Does smollm2-sharded load over 2 backends, from cold caches?"
    assert found.rows[6].question == (
        "What does smollm2-sharded take where no layer is offloaded (-ngl 0, from cold caches)?"
    )
    assert (
        found.rows[2].question
        == "How fast does smollm2-sharded answer prompts of 48 tokens over the backends?"
    )
    assert found.rows[9].mark.symbol == "✕"


def test_questions_stand_on_top_and_lead_to_their_trials(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    ids = [trial.id for trial in load_run(run).trials]
    asked = [
        {"id": "q1", "text": "Does it load?", "answer": "in 1.1 s", "verdict": "yes", "trials": ids[1:2]},
        {"id": "q2", "text": "Does it stay up?", "answer": "no", "verdict": "partly", "trials": ["gone"]},
    ]
    change_manifest(run, lambda m: m.update(questions=asked))
    first, second = verdict(load_run(run)).questions
    assert (first.mark.word, first.evidence) == ("yes", [(ids[1], f"trial-{ids[1]}")])
    assert (second.mark.symbol, second.evidence) == ("◐", [("gone", None)])
    page = write_report(run).read_text()
    assert page.index("Does it load?") < page.index("Trial by trial")
    assert f'<a href="#trial-{ids[1]}">{ids[1]}</a>' in page


def test_method_says_how_the_trials_ran_and_how_to_run_them_again(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: m.update(command=["harness", "run", "full"], seed=7, stopped="deadline"))
    found = method(load_run(run))
    assert found.command == "harness run full --seed 7"
    assert dict(found.ran)["Order"] == "shuffled with seed 7"
    assert dict(found.ran)["Repeats"].startswith("2 to 3 measured requests a trial; 8 warm-ups")
    assert dict(found.ran)["Left out"] == "deadline"
    assert len(found.flags) == 4
    assert all("--tensor-split" in line or "-ngl" in line for _, line in found.flags)
    change_manifest(run, lambda m: m.update(command=["harness", "run", "full", "--seed", "7"]))
    assert method(load_run(run)).command == "harness run full --seed 7"


def test_layers_are_counted_from_one_without_gaps(recorded: RunData) -> None:
    (whole, kept) = cluster(recorded).placements
    assert [box.layers for box in whole.boxes] == ["layers 1–16", "layers 17–31"]
    assert {box.source for box in whole.boxes} == {"reported by llama.cpp"}
    assert kept.distributed is False
    assert kept.local_bytes > 90 * MIB
    assert [box.bytes for box in kept.boxes] == [0, 0]
    assert layer_range(81, 1) == "layer 81"


def test_mixed_builds_are_said_out_loud(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: m["nodes"][1].update(build=6666))
    found = cluster(load_run(run))
    assert found.mixed
    assert "node1: 6751, node2: 6666" in found.uniform


def test_same_build_with_other_binaries_is_said_out_loud(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: m["nodes"][1].update(binaries={"rpc-server": "ab" * 32}))
    assert cluster(load_run(run)).mixed


def test_units_show_their_exposure_limits_and_restarts(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    rpc = {"ActiveState": "active", "SubState": "running", "NRestarts": "2", "User": "llama-rpc"}
    limits = {"MemoryHigh": "infinity", "MemoryMax": str(2 << 30), "MemorySwapMax": str(2**64 - 1)}
    found = {"llama-rpc-server.service": rpc | limits, "llama-router.service": {"ActiveState": "failed"}}
    scores = {"llama-rpc-server.service": 1.0, "llama-router.service": 9.2}
    change_manifest(run, lambda m: m["nodes"][0].update(units=found, exposure=scores))
    router, backend = units(load_run(run))
    assert (router.good, router.rating, router.settings) == (False, "open", [])
    assert (backend.state, backend.restarts, backend.rating) == ("active (running)", 2, "closed")
    assert backend.settings == [("user", "llama-rpc"), ("memory", "max 2.00 GiB")]


def test_link_says_its_rate_and_who_says_so(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    change_manifest(run, lambda m: m["nodes"][0].update(link_bits_per_s=1e9, link_source="token bucket"))
    change_manifest(run, lambda m: m["nodes"][1].update(interface="host0"))
    rows = cluster(load_run(run)).rows
    assert [row.link for row in rows] == ["1 Gbit/s, shaped by tc", "host0, rate not known"]


def test_drawing_says_in_words_which_layers_each_backend_holds(recorded: RunData) -> None:
    machines = cluster(recorded)
    drawn = placement_figure(machines.placements[0], machines.pool)
    for svg in (drawn.wide, drawn.narrow):
        assert "node1: layers 1–16" in svg
        assert "Pool on node2" in svg
        assert "layers 17–31</text>" in svg


def test_phases_and_rest_add_up_to_the_load_time(recorded: RunData) -> None:
    rows = [row for row in loads(recorded) if row.load_s and row.phases]
    assert len(rows) == 4
    for row in rows:
        assert sum(seconds for _, seconds in row.phases) == pytest.approx(row.load_s, rel=0.02)
        assert [phase for phase, _ in row.phases][:3] == ["connect", "open", "transfer"]


def test_plan_is_compared_with_the_buffers_that_llama_cpp_printed(recorded: RunData) -> None:
    table = plan_tables(recorded)[0]
    assert table.distributed
    assert [row.layers for row in table.rows] == [16, 15]
    reported = sum(
        (r.reported_model or 0) + (r.reported_kv or 0) + (r.reported_compute or 0) for r in table.rows
    )
    assert table.total_reported == reported
    assert table.total_off == pytest.approx((reported - table.total_planned) / table.total_planned)


def test_warm_up_and_canaries_are_no_measurements(recorded: RunData) -> None:
    rows = {row.trial: row for row in stages(recorded)}
    assert rows["03-smollm2-sharded-inference-48x3"].requests == 3
    assert "02-smollm2-sharded-cold-load" not in rows


def test_client_and_server_count_the_same_gaps(recorded: RunData) -> None:
    row = next(r for r in stages(recorded) if r.trial.startswith("05"))
    assert row.apart is not None
    assert abs(row.apart) < 0.1
    assert len(row.gaps) == 2 * 15


def test_every_end_has_its_class_and_the_line_that_decides(recorded: RunData) -> None:
    found = {row.failure: row for row in ends(recorded)}
    assert set(found) == {"backend_lost", "stopped_busy", "not_distributed", "stopped"}
    lost = found["backend_lost"]
    assert (lost.exit, lost.expected, lost.signals) == ("SIGABRT (134)", False, [])
    excerpt = lost.evidence[0].excerpt
    assert excerpt is not None
    (deciding,) = [line.text for line in excerpt.lines if line.deciding]
    assert "Remote RPC server crashed or returned malformed response" in deciding
    assert found["stopped_busy"].expected
    assert found["stopped"].orderly


def test_unwanted_ends_stand_first(recorded: RunData) -> None:
    assert ends(recorded)[0].failure == "backend_lost"
    assert ends(recorded)[-1].failure == "stopped"


def test_signals_and_exits_are_told_once_and_in_order(recorded: RunData) -> None:
    told = moments(recorded)
    assert [m.time_ns for m in told] == sorted(m.time_ns for m in told)
    assert [m.kind for m in told].count("signal") == 3
    assert any("SIGTERM" in m.text and "1 request in flight" in m.text for m in told)


def test_a_line_cut_short_is_a_warning_and_the_rest_is_read(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    for table in ("trials", "samples", "events"):
        path = run / f"{table}.jsonl"
        path.write_bytes(path.read_bytes()[:-40])
    cut = load_run(run)
    assert len(cut.trials) == 9
    assert len([w for w in cut.warnings if "cut short" in w]) == 3
    assert sum(len(s.time_ns) for s in cut.samples.values()) > 100
    assert any("cut short" in w for w in method(cut).warnings)


def test_a_damaged_sample_in_the_middle_is_left_out_and_said(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    path = run / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[3] = "{broken\n"
    path.write_text("".join(lines))
    cut = load_run(run)
    assert sum(len(s.time_ns) for s in cut.samples.values()) == len(lines) - 1
    assert "samples.jsonl: 1 lines could not be read and are left out" in cut.warnings


def test_packed_samples_read_as_the_lines_do(tmp_path: Path, recorded: RunData) -> None:
    run = copy_run(tmp_path)
    pack(run)
    (run / "samples.jsonl").unlink()
    packed = load_run(run)
    assert list(packed.samples) == list(recorded.samples)
    for node, series in packed.samples.items():
        np.testing.assert_array_equal(series.time_ns, recorded.samples[node].time_ns)
        np.testing.assert_array_equal(series.values["used"], recorded.samples[node].values["used"])


def test_lines_newer_than_their_pack_are_read(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    pack(run)
    path = run / "samples.jsonl"
    before = sum(len(s.time_ns) for s in load_run(run).samples.values())
    last = json.loads(path.read_text().splitlines()[-1])
    last["time_ns"] += 10**9
    with path.open("a") as stream:
        stream.write(json.dumps(last) + "\n")
    assert sum(len(s.time_ns) for s in load_run(run).samples.values()) == before + 1


def test_swap_begins_where_it_grows_and_names_the_trial(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    trial = load_run(run).trials[4]

    def swap(sample: dict[str, object]) -> None:
        memory = sample["memory"]
        assert isinstance(memory, dict)
        assert isinstance(sample["time_ns"], int)
        memory["swap_used_bytes"] = 3 * MIB
        if sample["node"] == "node2" and sample["time_ns"] > trial.started_ns:
            memory["swap_used_bytes"] = 300 * MIB

    change_lines(run, "samples", swap)
    rows = {row.node: row for row in peaks(load_run(run))}
    assert rows["node1"].swap_began_ns is None
    assert rows["node2"].peak_swap == 300 * MIB
    assert rows["node2"].swap_began_trial is not None
    assert rows["node2"].swap_began_trial.id == trial.id


def test_a_peak_of_one_second_survives_decimation() -> None:
    used = np.zeros(100_000)
    used[54_321] = 7e9
    times = np.arange(100_000, dtype=np.int64) * 10**9
    drawn = envelope(NodeSeries("node1", times, {"used": used}), "used", 0, 400)
    assert len(drawn.high) <= 400
    assert drawn.high.max() == 7e9
    assert drawn.low.max() == 0


def test_random_weights_are_said_to_be_that(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    assert [row.real for row in method(load_run(run)).models] == ["real", ""]
    assert not any("random weights" in warning for warning in method(load_run(run)).warnings)
    change_manifest(run, lambda m: m["models"]["smollm2-sharded"].update(synthetic=True))
    found = method(load_run(run))
    assert found.models[0].real == "synthetic"
    assert any(w.startswith("smollm2-sharded: random weights") for w in found.warnings)


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no run folder at"):
        load_run(tmp_path / "nothing")
    with pytest.raises(HarnessError, match=r"no run\.json|not a run folder"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"run": 1}')
    with pytest.raises(HarnessError, match="cannot be read"):
        load_run(tmp_path)
