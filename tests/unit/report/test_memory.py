"""Memory and swap of the nodes: extremes, node swap, rpc-server swap and its noise limit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.report.data import NodeSeries, load_run
from harness.report.markdown_status import render_markdown
from harness.report.page import write_report
from harness.report.sections.memory import envelope, peak_rows
from harness.report.sections.verdict import verdict_section
from harness.runs.metrics import SWAP_NOISE_BYTES
from tests.unit.report_runs import change_lines, copy_run

MIB = 1 << 20


def set_swap(run: Path, node_bytes: int, backend_bytes: int, since_ns: int) -> None:
    """Swap of node2, and of its rpc-server, from a moment on; 500 MiB of other swap were there before."""

    def change_sample(sample: dict[str, Any]) -> None:
        grown = sample["node"] == "node2" and sample["time_ns"] > since_ns
        sample["memory"]["swap_used_bytes"] = 500 * MIB + (node_bytes if grown else 0)

    def change_trial(trial: dict[str, Any]) -> None:
        for node, peak in trial["peak"].items():
            own = node == "node2"
            peak |= {
                "swap_bytes": 500 * MIB + own * node_bytes,
                "rpc_swap_bytes": own * backend_bytes,
            }

    change_lines(run, "samples", change_sample)
    change_lines(run, "trials", change_trial)


def test_node_swap_is_growth_and_names_the_trial_in_which_it_began(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    trial = load_run(run).trials[4]
    set_swap(run, node_bytes=300 * MIB, backend_bytes=0, since_ns=trial.started_ns)
    rows = {row.node: row for row in peak_rows(load_run(run))}
    assert (rows["node1"].swap_began_ns, rows["node1"].node_swap) == (None, 0)
    assert rows["node2"].node_swap == 300 * MIB
    assert rows["node2"].swap_began_trial is not None
    assert rows["node2"].swap_began_trial.id == trial.id


@pytest.mark.parametrize(
    ("size_bytes", "swapped"), [(SWAP_NOISE_BYTES, False), (SWAP_NOISE_BYTES + MIB, True)]
)
def test_page_and_markdown_agree_on_swap_and_its_noise_limit(
    tmp_path: Path, size_bytes: int, swapped: bool
) -> None:
    run = copy_run(tmp_path)
    set_swap(run, size_bytes, size_bytes, since_ns=load_run(run).trials[1].started_ns)
    data = load_run(run)
    for row in verdict_section(data)["rows"]:
        figures = dict(row["figures"])
        assert "peak swap" not in figures, "it would be the node's, with a swap of other processes"
        text = "17.0 MiB" if swapped else "none"
        assert figures.get("rpc-server swap", text) == text
    assert [row.swap_began_ns is not None for row in peak_rows(data)] == [False, swapped]
    assert ("Node swap grew: node2" in write_report(run).read_text()) == swapped
    lines = [line for line in render_markdown(data).splitlines() if line.startswith("- Swap")]
    assert len(lines) == 8
    assert all(("node2 17 MiB" in line) == swapped and "rpc-server" in line for line in lines)


def test_a_peak_of_one_second_survives_decimation() -> None:
    used = np.zeros(100_000)
    used[54_321] = 7e9
    times = np.arange(100_000, dtype=np.int64) * 10**9
    drawn = envelope(NodeSeries("node1", times, {}), used, 0, 400)
    assert len(drawn.high) <= 400
    assert drawn.high.max() == 7e9
    assert drawn.low.max() == 0
