"""The end of a run: what cannot be packed or read costs its own part, not the run's result."""

from pathlib import Path

import pytest
from harness.trials.runner import pack_tables
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
