"""How each class is worded: builds of 2024 to 2026, every backend, Windows, systemd, the kernel, Ollama."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.diagnosis import Confidence, Diagnosis
from harness.diagnosis.classify import diagnose_log
from harness.diagnosis.exit_status import parse_exit_status

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "logs" / "wordings.json").read_text()
)
"""What llama.cpp, its libraries or the system around it print, cut to the lines that matter."""

PREFIXES = [
    "0.54.236.075 E ",
    "[56285] 0.54.236.075 E ",
    "Nov 25 12:00:01 node1 llama-rpc-server[812]: ",
    "2026-11-25T12:00:01.123456+00:00 node1 llama-router[812]: ",
    "llama-1  | ",
    "\x1b[31m",
]
"""Of newer builds, of a router's child, of the journal, of Docker, of colours."""


def diagnose(lines: list[str], exit_status: str | None) -> Diagnosis:
    return diagnose_log({"x.log": lines}, parse_exit_status(exit_status) if exit_status else None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['class']}-{case['lines'][0][:40]}")
def test_wording_gets_its_class(case: dict[str, Any]) -> None:
    diagnosis = diagnose(case["lines"], case.get("exit"))
    assert diagnosis.failure_class == case["class"], diagnosis


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefix_of_a_line_changes_nothing(prefix: str) -> None:
    got = [diagnose([prefix + line for line in case["lines"]], case.get("exit")) for case in CASES]
    assert [
        (case["lines"][0], diagnosis.failure_class.value)
        for case, diagnosis in zip(CASES, got, strict=True)
        if diagnosis.failure_class != case["class"]
    ] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['class']}-{case['lines'][0][:40]}")
def test_log_alone_is_never_certain_unless_it_tells_the_end(case: dict[str, Any]) -> None:
    ends = (
        "Aborted",
        "Segmentation",
        "Illegal",
        "illegal",
        "Killed",
        "oom",
        "OOM",
        "segfault",
        "opcode",
        "pipe",
    )
    ends += ("status=", "exit status", "c0000", "no longer running")
    told = any(word in line for line in case["lines"] for word in ends)
    assert told or diagnose(case["lines"], None).confidence is not Confidence.CERTAIN
