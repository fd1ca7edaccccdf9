"""A run's two ends: what is checked before the router is asked, and what cannot be packed or read at last."""

from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.trials.progress import RunProgress
from harness.trials.run_spec import Options
from harness.trials.runner import pack_tables, run_benchmark
from rich.console import Console
from tests.unit.run_records import trial
from tests.unit.trials.cluster_double import events, make_context


@pytest.mark.parametrize("damage", ["{garbage\n", '{"sent_ns": 1180591620717411303424}\n'])
def test_run_whose_requests_cannot_be_packed_ends_with_a_warning(tmp_path: Path, damage: str) -> None:
    ctx = make_context(tmp_path)
    ctx.run.append_trial(trial("a"))
    (ctx.run.path / "requests.jsonl").write_text(damage)
    lines: list[str] = []
    pack_tables(ctx, lines.append)
    (warning,) = events(ctx)
    assert "requests.jsonl" in warning.data["message"]
    assert len(lines) == 1
    assert (ctx.run.path / "trials.parquet").exists()


@pytest.mark.parametrize("reports", ["/proc/x", "/dev/null/x", "file"])
async def test_folder_that_cannot_be_written_is_said_before_the_router_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: str
) -> None:
    (tmp_path / "file").touch()
    inventory = tmp_path / "inventory.yml"
    inventory.write_text("head: {hosts: {a: {ansible_host: 127.0.0.1}}}\n")
    monkeypatch.setattr("harness.trials.runner.router_address", lambda inventory: pytest.fail("asked"))
    folder = tmp_path / reports
    with pytest.raises(HarnessError, match=f"cannot write into the reports folder {folder}: .* --reports"):
        await run_benchmark(Options("smoke", inventory, folder), RunProgress(Console(quiet=True)))
