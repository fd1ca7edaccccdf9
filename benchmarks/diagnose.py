"""Times ``harness diagnose`` on a long log, beside ``grep -F -c`` on the same file, in interleaved rounds.

    python benchmarks/diagnose.py [--megabytes 200] [--rounds 5] [--distinct]

The log is what a busy llama-server prints: start, load, requests with ever new numbers, and a lost backend at
its end; ``--distinct`` gives each line words of its own as well, the worst case. Prints JSON: seconds of
each round (process start included), the highest resident memory, and what was diagnosed.
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
    """Lines of requests, without end."""
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
    """A recorded log of a coordinator that lost a backend, with ``size`` bytes of requests in its middle."""
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


def timed(*command: str) -> tuple[float, str]:
    """Seconds that a command took, and what it printed."""
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return time.perf_counter() - begun, done.stdout


def main() -> None:
    """Write the log, time both, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--distinct", action="store_true")
    options = parser.parse_args()
    harness = str(Path(sys.executable).with_name("harness"))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        write_log(log, options.megabytes * 10**6, options.distinct)
        ours, grep, found = [], [], ""
        for _ in range(options.rounds):
            seconds, found = timed(harness, "diagnose", str(log), "--exit-status", "134", "--json")
            ours.append(round(seconds, 2))
            grep.append(round(timed("grep", "-F", "-c", "Remote RPC server crashed", str(log))[0], 3))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        said = json.loads(found)
        result = {
            "bytes": log.stat().st_size,
            "harness_s": ours,
            "grep_one_text_s": grep,
            "peak_resident_mb": round(peak / 1024),
            "class": said["class"],
            "line": said["evidence"][0],
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
