"""Run folders for the report's tests: the recorded one, and copies of it with something changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parents[1] / "data" / "runs" / "loopback"
KINDS = RECORDED.with_name("kinds")

HOSTILE = (
    "</title></style></pre></script><script>window.owned=1;alert(1)</script>"
    '<img src=x onerror="window.owned=1"><svg onload=window.owned=1><a href=javascript:owned=1>a</a></svg>'
    '" autofocus onfocus=window.owned=1 x=\'"><iframe src=http://hostile.invalid/></iframe>'
    "$x^2${{7*7}}\x1b[31m\x00\u202eSSAP\u2066 שלום"
)
"""What a log line, a model or a node could try.

Markup that ends the page's own, event handlers, a foreign document, mathtext, a template, escapes of a
terminal, and marks that turn the reading order.
"""


def copy_run(target: Path, recorded: Path = RECORDED) -> Path:
    """A copy of a recorded run that a test may change."""
    folder = target / recorded.name
    shutil.copytree(recorded, folder)
    return folder


def change_manifest(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply ``change`` to ``run.json``."""
    path = run / "run.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def change_lines(run: Path, table: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply ``change`` to every record of a table."""
    path = run / f"{table}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


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


def hostile_run(target: Path) -> Path:
    """The recorded run with hostile text wherever a node, a model, a log or a user can put text."""
    run = copy_run(target)
    renamed = {"node1": f"node1{HOSTILE}"}

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {renamed.get(k, k): rename(v) for k, v in value.items()}
        if isinstance(value, list):
            return [rename(v) for v in value]
        return renamed.get(value, value) if isinstance(value, str) else value

    def spoil_manifest(manifest: dict[str, Any]) -> None:
        manifest["nodes"] = rename(manifest["nodes"])
        node = manifest["nodes"][0]
        node |= {"commit": HOSTILE, "platform": HOSTILE, "cpu": HOSTILE, "binaries": {HOSTILE: HOSTILE}}
        node["units"] = {HOSTILE: {"ActiveState": HOSTILE, "User": HOSTILE, "MemoryMax": HOSTILE}}
        node |= {"interface": HOSTILE, "link_bits_per_s": 1e9, "link_source": HOSTILE}
        manifest |= {"profile_text": HOSTILE, "inventory": HOSTILE, "command": ["harness", HOSTILE]}
        manifest["models"] = {HOSTILE: {"path": HOSTILE}}
        manifest |= {"formulas": {HOSTILE: HOSTILE}, "stopped": HOSTILE, "steps": {HOSTILE: HOSTILE}}
        asked = {"id": HOSTILE, "text": HOSTILE, "answer": HOSTILE, "verdict": "no", "trials": [HOSTILE]}
        manifest["questions"] = [asked]

    def spoil_trial(trial: dict[str, Any]) -> None:
        trial |= {"model": f"{trial['model']}{HOSTILE}", "answer": HOSTILE, "id": f"{trial['id']}{HOSTILE}"}
        for holder in (trial, trial["coordinator"] or {}):
            if diagnosis := holder.get("diagnosis"):
                diagnosis |= {"advice": HOSTILE, "ruled_out": [HOSTILE]}
                diagnosis["evidence"].append({"source": HOSTILE, "line": HOSTILE})
        if trial["coordinator"]:
            trial["coordinator"]["argv"] = [HOSTILE]
        for key in ("coordinator", "peak"):
            trial[key] = rename(trial[key])

    change_manifest(run, spoil_manifest)
    change_lines(run, "trials", spoil_trial)
    add_hostile_kinds(run)
    change_lines(
        run, "requests", lambda r: r.update(text=HOSTILE, error=HOSTILE if r["index"] == 2 else None)
    )
    change_lines(run, "samples", lambda s: s.update(node=renamed.get(s["node"], s["node"])))
    change_lines(run, "events", lambda e: e.update(kind="warning", data={"message": HOSTILE}))
    spoil_logs(run)
    return run


def add_hostile_kinds(run: Path) -> None:
    """A parity, a soak and a fault trial whose details are hostile."""
    path = run / "trials.jsonl"
    like = json.loads(path.read_text().splitlines()[2])
    answer = {"text": HOSTILE, "where": HOSTILE}
    drift = {"bytes_per_hour": 1.0, "low": HOSTILE, "high": None}
    for kind, details in (
        ("parity", {"reference": answer, "seen": answer | {"text": f"other {HOSTILE}"}}),
        ("soak", {"errors": {HOSTILE: 1}, "rate_drift": HOSTILE, "memory_drift": {HOSTILE: drift}}),
        ("fault", {"fault": HOSTILE, "node": HOSTILE, "moment": HOSTILE, "injected_ns": HOSTILE}),
    ):
        trial = like | {"id": f"{kind}{HOSTILE}", "kind": kind, "details": details, "expected": HOSTILE}
        with path.open("a") as stream:
            stream.write(json.dumps(trial) + "\n")


def spoil_logs(run: Path) -> None:
    """Put a hostile line before and after every line of every log."""
    for log in (run / "logs").iterdir():
        lines = log.read_text().splitlines()
        log.write_text("".join(f"{HOSTILE}\n{line} {HOSTILE}\n" for line in lines))
