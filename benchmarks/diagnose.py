"""Compare the time of ``harness diagnose`` with ``grep -F -c`` on the same long log, in interleaved rounds.

    python benchmarks/diagnose.py [--megabytes 200] [--rounds 5] [--distinct]

The log is the output of a busy llama-server: start, load, requests with changing numbers, and a lost
backend at the end. With ``--distinct`` each line also has different words, which is the worst case. It
prints JSON: seconds and CPU seconds of each round (process start included), the peak resident memory, and
the diagnosis.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDED = REPOSITORY / "tests" / "data" / "logs" / "backend_lost.log"
_REQUEST = (
    "slot get_availabl: id {slot:2d} | task -1 | selected slot by LRU, t_last = {big}",
    "slot launch_slot_: id {slot:2d} | task {task} | processing task",
    "slot update_slots: id {slot:2d} | task {task} | new prompt, n_prompt_tokens = {n}",
    "slot update_slots: id {slot:2d} | task {task} | n_past = {n}, memory_seq_rm [{n}, end)",
    "slot update_slots: id {slot:2d} | task {task} | prompt processing progress, n_past = {n}, "
    "n_tokens = {n}, progress = 1.000000",
    "slot update_slots: id {slot:2d} | task {task} | prompt done, n_past = {n}, n_tokens = {n}",
    "slot print_timing: id {slot:2d} | task {task} | ",
    "prompt eval time =    {big:.2f} ms /   {n} tokens ({ms:8.2f} ms per token, {ms:8.2f} tokens/s)",
    "       eval time =    {big:.2f} ms /   {n} tokens ({ms:8.2f} ms per token, {ms:8.2f} tokens/s)",
    "      total time =    {big:.2f} ms /   {n} tokens",
    "slot      release: id {slot:2d} | task {task} | stop processing: n_past = {n}, truncated = 0",
    "srv  update_slots: all slots are idle",
    "srv  log_server_r: request: POST /v1/chat/completions 127.0.0.1 200",
)


def lines(distinct: bool) -> Iterator[str]:
    """An endless sequence of request lines."""
    chance = random.Random(11434)  # noqa: S311 - figures of a log, not secrets
    letters = "abcdefghijklmnopqrstuvwxyz"
    for task in count():
        figures = {
            "slot": task % 4,
            "task": task,
            "n": chance.randrange(9, 4000),
            "ms": chance.uniform(1, 900),
        }
        for line in _REQUEST:
            shown = line.format(big=chance.randrange(10**4, 10**9), **figures)
            yield f"{shown} {''.join(chance.choices(letters, k=12))}" if distinct else shown


def write_log(path: Path, size: int, distinct: bool) -> None:
    """Write a recorded log of a coordinator that lost a backend, with ``size`` bytes of requests inside."""
    recorded = RECORDED.read_text().splitlines(keepends=True)
    middle = next(index for index, line in enumerate(recorded) if "server is listening" in line) + 1
    written = 0
    with path.open("w") as file:
        file.writelines(recorded[:middle])
        for line in lines(distinct):
            written += file.write(f"{line}\n")
            if written >= size:
                break
        file.writelines(recorded[middle:])


def timed(*command: str) -> tuple[float, float, str]:
    """Seconds and CPU seconds of a command, and its output."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(seconds, 3), round(cpu_s, 3), done.stdout


def main() -> None:
    """Write the log, time both programs, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--distinct", action="store_true")
    options = parser.parse_args()
    harness = str(Path(sys.executable).with_name("harness"))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        write_log(log, options.megabytes * 10**6, options.distinct)
        ours, grep = [], []
        for _ in range(options.rounds):
            ours.append(timed(harness, "diagnose", str(log), "--exit-status", "134", "--json"))
            grep.append(timed("grep", "-F", "-c", "Remote RPC server crashed", str(log)))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        diagnosis = json.loads(ours[-1][2])
        result = {
            "bytes": log.stat().st_size,
            "harness_s": [seconds for seconds, _, _ in ours],
            "harness_cpu_s": [cpu_s for _, cpu_s, _ in ours],
            "grep_one_text_s": [seconds for seconds, _, _ in grep],
            "peak_resident_mb": round(peak / 1024),
            "class": diagnosis["class"],
            "line": diagnosis["evidence"][0],
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
