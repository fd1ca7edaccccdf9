"""Whatever bytes a log holds, wherever it is cut: never a crash, never a class that is wrong for certain."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.diagnosis import Confidence, Diagnosis, ExitStatus, FailureClass
from harness.diagnosis.classify import diagnose_log
from harness.diagnosis.exit_status import in_words, parse_exit_status
from harness.errors import HarnessError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LOGS = Path(__file__).parents[2] / "data" / "logs"
RECORDED: dict[str, dict[str, Any]] = json.loads((LOGS / "recorded.json").read_text())
WORDINGS: list[dict[str, Any]] = json.loads((LOGS / "wordings.json").read_text())

EFFECTS = {
    "oom_killed": {"unknown"},
    "out_of_memory": {"model_invalid", "stopped", "backend_lost", "assertion"},
    "model_invalid": {"stopped"},
    "port_in_use": {"stopped"},
    "stopped_busy": {"backend_lost", "stopped", "assertion"},
    "backend_lost": {"assertion"},
    "not_distributed": set(),
    "rpc_version_mismatch": {"backend_unreachable", "segfault"},
    "bad_arguments": {"port_in_use"},
    "backend_unreachable": {"segfault"},
    "gpu_driver": {"assertion"},
}
"""What is left to see of a class when the line that decides it is cut off."""

anything = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
words = st.sampled_from([line for case in WORDINGS for line in case["lines"]])
statuses = st.one_of(st.none(), st.integers(-(1 << 31), (1 << 32) - 1))


def diagnose(content: bytes, status: int | None, folder: Path) -> Diagnosis:
    log = folder / "x.log"
    log.write_bytes(content)
    return diagnose_log({log.name: log}, None if status is None else ExitStatus(time_ns=0, code=status))


@anything
@given(content=st.binary(max_size=4000), status=statuses)
def test_any_bytes_get_a_class(content: bytes, status: int | None, tmp_path: Path) -> None:
    assert diagnose(content, status, tmp_path).failure_class in FailureClass


@anything
@given(
    parts=st.lists(st.one_of(words.map(str.encode), st.binary(max_size=200)), max_size=30),
    joint=st.sampled_from([b"\n", b"\r\n", b"\0", b" ", b"\x1b[0m\n"]),
    status=statuses,
)
def test_messages_in_rubble_get_a_class(
    parts: list[bytes], joint: bytes, status: int | None, tmp_path: Path
) -> None:
    assert diagnose(joint.join(parts), status, tmp_path).failure_class in FailureClass


@anything
@given(text=st.text(max_size=40))
def test_exit_status_is_understood_or_refused_in_one_line(text: str) -> None:
    try:
        shown = in_words(parse_exit_status(text))
    except HarnessError as error:
        shown = str(error)
    assert shown


@pytest.mark.parametrize("name", sorted(RECORDED))
@pytest.mark.parametrize("side", ["front", "back", "middle"])
@pytest.mark.parametrize("knows_exit", [True, False])
def test_cut_log_gives_its_class_or_less(name: str, side: str, knows_exit: bool) -> None:
    lines = (LOGS / f"{name}.log").read_text(errors="replace").splitlines()
    entry = RECORDED[name]
    ended = ExitStatus(time_ns=0, **entry["exit"]) if knows_exit and "exit" in entry else None
    whole = diagnose_log({name: lines}, ended)
    allowed = {whole.failure_class.value, "unknown"} | EFFECTS.get(whole.failure_class.value, set())
    for tenth in range(11):
        at = len(lines) * tenth // 10
        cut = {
            "front": lines[at:],
            "back": lines[:at],
            "middle": lines[: at // 2] + lines[len(lines) - at // 2 :],
        }[side]
        found = diagnose_log({name: cut}, ended)
        assert found.failure_class.value in allowed, (at, found)
        if found.failure_class is not whole.failure_class:
            assert found.confidence is not Confidence.CERTAIN or found.failure_class == "segfault", (
                at,
                found,
            )


@pytest.mark.parametrize("ending", ["", "\n"])
def test_message_after_a_line_without_end_is_found(ending: str, tmp_path: Path) -> None:
    content = (
        b"x" * (9 << 20) + b"\nRemote RPC server crashed or returned malformed response" + ending.encode()
    )
    found = diagnose(content, 134, tmp_path)
    assert (found.failure_class, found.evidence[0].source) == ("backend_lost", "x.log:2")


def test_log_of_windows_powershell_is_read(tmp_path: Path) -> None:
    text = "main: loading model\nCUDA error: an illegal memory access was encountered\n"
    found = diagnose(text.encode("utf-16"), 3, tmp_path)
    assert (found.failure_class, found.evidence[0].source) == ("gpu_driver", "x.log:2")


def test_line_that_differs_in_its_numbers_alone_is_read_for_itself(tmp_path: Path) -> None:
    lines = b"".join(b"worker exited with code %d\n" % code for code in (0, 1, 2, 139))
    found = diagnose(lines, None, tmp_path)
    assert (found.failure_class, found.evidence[0].source) == ("segfault", "x.log:4")


def test_cause_among_thousands_of_effects_is_the_first(tmp_path: Path) -> None:
    lost = b"ggml-rpc.cpp:823: Remote RPC server crashed or returned malformed response\n"
    found = diagnose(b"srv  update_slots: all slots are idle\n" * 3000 + lost * 3000, 134, tmp_path)
    assert found.evidence[0].source == "x.log:3001"
