"""Measure the time and the size of a report of a long run, with a synthetic run of any size.

    python benchmarks/report.py --samples 1000000 --requests 10000

The run is synthetic (its manifest says so). Only the report is measured, in its own process.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness.contracts.coordinator_state import (
    BackendBuffers,
    CoordinatorPhase,
    CoordinatorState,
    LoadReport,
    LoadTimings,
)
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, ExitStatus, FailureClass, Signal
from harness.contracts.plan import BackendShare, Plan
from harness.contracts.run_records import NodeFacts, Outcome, Request, RunManifest, Trial
from harness.runs.folder import RunFolder

FIRST_FRAME = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1e3"
WRITE = """
import json, pathlib, sys, time
import harness.report.page
harness.report.page.write_report(pathlib.Path(sys.argv[1]))
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"cpu_s": time.process_time(), "peak_kib": int(status["VmHWM"].split()[0])}))
"""
"""The peak comes from /proc, because getrusage's value for a child starts with its parent's peak."""
GIB = 1024**3
SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
NODES = {"node1": 5.6, "node2": 11.3, "node3": 5.5, "node4": 5.8}


def make_run(folder: Path, samples: int, requests: int, trials: int = 24) -> Path:
    """Write a synthetic run with this number of samples (of all nodes) and requests.

    Returns:
        The run's folder.
    """
    per_node = max(samples // len(NODES), 2)
    length_s = per_node
    run = RunFolder.create(folder, "synthetic")
    each = length_s / trials
    for number in range(trials):
        run.append_trial(_trial(number, START + int(number * each * SECOND), int(each * SECOND)))
    lines = [
        _request(n, f"{n % trials:02d}-13b-q4_0-inference", n % trials, each).model_dump_json()
        for n in range(requests)
    ]
    (run.path / "requests.jsonl").write_text("\n".join(lines) + "\n")
    _write_samples(run.path / "samples.parquet", per_node)
    run.write_manifest(_manifest(length_s))
    run.close()
    return run.path


def _manifest(length_s: int) -> RunManifest:
    return RunManifest(
        run="synthetic",
        profile="synthetic",
        profile_text="made up by benchmarks/report.py; measures the report, not a cluster\n",
        inventory="none",
        started_ns=START,
        ended_ns=START + length_s * SECOND,
        outcome=Outcome.FAILED,
        harness_version="0",
        command=["python", "benchmarks/report.py"],
        nodes=[
            NodeFacts(
                name=name, address=f"192.0.2.{place}", groups=["backends"], build=6751, commit="01d2bdc2b"
            )
            for place, name in enumerate(NODES, 1)
        ],
    )


def _trial(number: int, start_ns: int, length_ns: int) -> Trial:
    load = number % 2 == 0
    model = ("13b-q4_0", "70b-tq1_0")[number // 2 % 2]
    exec_ns = start_ns + 40_000_000
    took = 30.0 + 10 * (number % 5)
    shares = [
        BackendShare(
            node=name, endpoint=f"192.0.2.{n}:50052", available_bytes=int(size * GIB), weight=size, layers=10,
            model_bytes=int(1.7 * GIB), kv_bytes=400 << 20, compute_bytes=85 << 20,
        )
        for n, (name, size) in enumerate(NODES.items(), 1)
    ]  # fmt: skip
    state = CoordinatorState(
        phase=CoordinatorPhase.ENDED,
        start_id=f"start-{number}",
        model=model,
        plan=Plan(model=model, model_path="/m.gguf", file_bytes=7 * GIB, layers_total=40, shares=shares),
        timings=LoadTimings(
            requested_ns=start_ns,
            exec_ns=exec_ns,
            healthy_ns=exec_ns + int(took * SECOND),
            ready_ns=exec_ns + int((took + 0.2) * SECOND),
            phases={"connect": 0.2, "open": 1.1, "transfer": took - 4, "kv": 0.6, "warmup": 1.9},
        ),
        report=LoadReport(
            offloaded=40,
            layers_total=40,
            build=6751,
            buffers=[
                BackendBuffers(
                    device=f"RPC{n}[{s.endpoint}]", node=s.node, model_bytes=int(s.model_bytes * 1.01),
                    kv_bytes=s.kv_bytes, compute_bytes=s.compute_bytes,
                )
                for n, s in enumerate(shares)
            ],
        ),
        signals=[
            Signal(name="SIGTERM", time_ns=start_ns + length_ns - SECOND, reason="test", requests_in_flight=1)
        ],
        exit=ExitStatus(time_ns=start_ns + length_ns - SECOND // 2, signal=6),
    )  # fmt: skip
    diagnosis = Diagnosis(
        failure_class=FailureClass.STOPPED_BUSY,
        evidence=[Evidence(source="signals", line="SIGTERM sent with 1 request(s) in flight")],
        confidence=Confidence.CERTAIN,
        advice="Nothing to mend.",
    )
    return Trial(
        id=f"{number:02d}-{model}-{'cold-load' if load else 'inference'}",
        kind="load" if load else "inference",
        model=model,
        started_ns=start_ns,
        ended_ns=start_ns + length_ns,
        outcome=Outcome.PASSED if number % 5 else Outcome.FAILED,
        answer="made up",
        coordinator=state if load else None,
        diagnosis=diagnosis if load else None,
        metrics={"load_s": took, "wire_bytes": 7.0e9, "wire_floor_s": took * 0.8} if load else {},
    )


def _request(index: int, trial: str, number: int, each_s: float) -> Request:
    dice = random.Random(index)  # noqa: S311 - made-up data
    sent = START + int((number * each_s + dice.random() * each_s) * SECOND)
    first = sent + int(dice.gauss(1.2, 0.1) * SECOND)
    tokens = [first + int(n * 0.52 * SECOND * dice.gauss(1, 0.02)) for n in range(32)]
    return Request(
        trial=trial, index=index, route="coordinator", model="13b-q4_0", sent_ns=sent,
        token_ns=sorted(tokens), done_ns=tokens[-1],
        prompt_tokens=(35, 512)[index % 2], completion_tokens=32, status=200,
        server={"predicted_n": 32, "predicted_ms": 16120.0}, text="made up " * 8,
    )  # fmt: skip


def _write_samples(path: Path, per_node: int) -> None:
    """Write the packed form of samples.jsonl: one flat row per sample, nodes interleaved."""
    random_source = np.random.default_rng(1)
    seconds = np.arange(per_node)
    tables = []
    for place, (name, size) in enumerate(NODES.items()):
        total = int(size * GIB)
        wave = 0.5 + 0.35 * np.sin(seconds / per_node * 2 * math.pi * (place + 2))
        used = (np.clip(wave + random_source.normal(0, 0.01, per_node), 0, 1) * total).astype(np.int64)
        swap = np.where(used > 0.8 * total, used // 10, 0)
        tables.append(
            pa.table(
                {
                    "time_ns": START + seconds * SECOND + place,
                    "node": pa.array([name] * per_node),
                    "memory.total_bytes": np.full(per_node, total),
                    "memory.available_bytes": total - used,
                    "memory.used_bytes": used,
                    "memory.cache_bytes": used // 3,
                    "memory.swap_used_bytes": swap,
                    "memory.major_faults": np.cumsum(swap > 0),
                    "pressure.memory_some_avg10": np.where(swap > 0, 40 * wave, 0.0),
                    "pressure.memory_full_avg10": np.where(swap > 0, 25 * wave, 0.0),
                    "pressure.io_some_avg10": np.abs(random_source.normal(3, 1, per_node)),
                    "pressure.io_full_avg10": np.abs(random_source.normal(1, 0.3, per_node)),
                    "load1": 2 * wave,
                    "disk.read_bytes_per_s": swap / 4,
                    "disk.written_bytes_per_s": swap / 8,
                    "network.received_bytes_per_s": used / 60,
                    "network.sent_bytes_per_s": used / 6000,
                    "rpc_rss_bytes": used - used // 20,
                    "rpc_swap_bytes": swap - swap // 20,
                    "gpu_memory_used_bytes": pa.nulls(per_node, pa.string()),
                    "units": pa.array(['{"llama-rpc-server.service": {"active": "active"}}'] * per_node),
                }
            )
        )
    pq.write_table(pa.concat_tables(tables).sort_by("time_ns"), path, compression="zstd")


def opened(report: Path, repeats: int = 5) -> dict[str, object]:
    """Seconds until chromium has rendered the page and run its script, each in a new context.

    From the start of the navigation to the ``load`` event, by the page's own clock, and to the next frame.
    """
    path = shutil.which("chromium")
    if path is None:
        return {"missing": "apt-get install chromium"}
    from playwright.sync_api import sync_playwright

    loaded, drawn = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(repeats):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            page.goto(report.as_uri())
            loaded.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1e3"))
            drawn.append(page.evaluate(FIRST_FRAME))
            context.close()
        version = browser.version
        browser.close()
    return {
        "version": version,
        "loaded_s": [round(value, 3) for value in loaded],
        "first_paint_s": [round(value, 3) for value in drawn],
    }


def main() -> None:
    """Create the run, write its report in a new process, print time, size and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="create the run in this folder and keep it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = make_run(options.keep or Path(scratch), options.samples, options.requests)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", WRITE, str(run)], check=True, stdout=subprocess.PIPE, text=True
        )
        took = time.monotonic() - began
        own = json.loads(done.stdout)
        figures = {
            "samples": options.samples,
            "requests": options.requests,
            "seconds": round(took, 2),
            "cpu_seconds": round(own["cpu_s"], 2),
            "load_average": round(os.getloadavg()[0], 1),
            "report_mb": round((run / "report.html").stat().st_size / 1e6, 2),
            "peak_memory_mb": round(own["peak_kib"] / 1024),
            "chromium": opened(run / "report.html"),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
