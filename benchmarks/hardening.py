"""Measure what the hardened compiler and linker flags cost: two builds of one release, in turns.

The cache has the build with the flags. Build it a second time without them (a checkout whose
roles/llama_cpp/vars/main.yml has none, with a LLAMA_HARNESS_CACHE of its own), then:

    benchmarks/hardening.py --plain OTHER_CACHE/local/current/bin --rounds 6

Each round runs llama-bench over one rpc-server of the same build on loopback, once with each build, in an
order that alternates: prompt and decode in tokens per second. The flags of both are in their manifest.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.settings import cache_dir

from load import free_port, running
from priority import session_first
from ratio_table import Row, as_data, table

BAR = 0.03


def rates(binaries: Path, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Tokens per second of the prompt and of decode."""
    port = free_port()
    backend = [str(binaries / "rpc-server"), "--host", "127.0.0.1", "--port", str(port), "--threads"]
    bench = [str(binaries / "llama-bench"), "--model", str(options.model), "--rpc", f"127.0.0.1:{port}"]
    bench += ["-dev", "RPC0", "-ngl", "999", "-t", str(options.threads), "-r", "1", "-o", "json"]
    bench += ["-p", str(options.prompt), "-n", str(options.generated)]
    with running([*backend, str(options.threads)], folder / "rpc.log") as process:
        if options.first:
            session_first(process.pid)
        done = subprocess.run(bench, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"llama-bench of {binaries} ended with {done.returncode}: {done.stderr.decode()[-800:]}"
        )
    report = json.loads(done.stdout)
    return {"prompt" if test["n_prompt"] else "decode": float(test["avg_ts"]) for test in report}


def main() -> None:
    """Print the table; exit 1 if the hardened build costs more than the goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=cache_dir() / "models" / "1b-q8_0.gguf")
    parser.add_argument("--binaries", type=Path, default=cache_dir() / "local" / "current" / "bin")
    parser.add_argument("--plain", type=Path, required=True, help="bin folder of the build without the flags")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--generated", type=int, default=32, help="tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first", action="store_true", help="raise the programs' priority (needs root)")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    options = parser.parse_args()
    for needed in (options.model, options.binaries / "llama-bench", options.plain / "llama-bench"):
        if not needed.exists():
            parser.error(f"no {needed}: set the path with --model, --binaries or --plain")
    figures: dict[str, dict[Path, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-hardening-") as folder:
        for number in range(options.rounds):
            pair = (options.binaries, options.plain)
            for binaries in pair if number % 2 else reversed(pair):
                for name, value in rates(binaries, options, Path(folder)).items():
                    figures.setdefault(name, {}).setdefault(binaries, []).append(value)
            last = ", ".join(
                f"{name} {by[options.binaries][-1]:.2f} and {by[options.plain][-1]:.2f}"
                for name, by in figures.items()
            )
            print(f"round {number + 1}: {last} tokens/s", file=sys.stderr, flush=True)
    rows = [
        Row(f"{name}, tokens/s", by[options.binaries], by[options.plain], None)
        for name, by in figures.items()
    ]
    print(table(f"{options.model.stem}, {options.rounds} rounds", "hardened", "plain", rows))
    if options.json:
        options.json.write_text(json.dumps(as_data(rows), indent=1) + "\n")
    slower = [row.name for row in rows if row.ratio.median < 1 - BAR]
    print(f"goal: at most {BAR:.0%} slower; missed: {', '.join(slower) or 'none'}")
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
