"""Compare the first load after ``harness warm`` with bare llama.cpp's first load, on a deployed inventory.

    benchmarks/warm.py --model 13b-q4_0 --rounds 3 --json warm.json

Each round, interleaved:

    bare     caches and page caches empty; ``llama-server --rpc`` on the head node, llama.cpp's own split
    warm     caches and page caches empty; time of ``harness warm`` (``--push``: over the links)
    warmed   the router loads the model at once, with the page caches that ``harness warm`` left
    later    the same, but model and caches are not in the page caches, as on the next day

Lower bounds, measured in the same run on the head node: ``hash`` is the time of llama.cpp's hash (one
thread) over the tensors that the plan caches; ``disk`` is a cold read of the file. For ``later`` it also
includes the caches (a lab's nodes share one disk). For ``warm`` it is the slowest node's network or disk.
"""

import argparse
import asyncio
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from harness.cluster.inventory import Inventory, Node, load_inventory
from harness.cluster.ssh import run_on
from harness.contracts.plan import LoadRequest
from harness.errors import HarnessError
from harness.router_client.client import RouterClient, router_address
from harness.settings import DEFAULT_INVENTORY
from harness.tensor_cache.client import TOOL, make_cold
from harness.tensor_cache.warm import Warmed, warm
from harness.trials.lab import lab_of, stated_rate

PORT = 18099
HEALTH = """
import subprocess, sys, time, urllib.request
argv = sys.argv[1:]
started = time.monotonic()
child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, restore_signals=False)
while child.poll() is None:
    try:
        urllib.request.urlopen("http://127.0.0.1:%d/health" % int(argv[argv.index("--port") + 1]), timeout=2)
        print(time.monotonic() - started)
        break
    except OSError:
        time.sleep(0.05)
child.terminate()
child.wait(60)
"""


@dataclass(frozen=True)
class Round:
    """Seconds of one round."""

    bare: float
    warm: float
    warmed: float
    later: float
    warm_floor: float
    """Lower bound of ``harness warm``: the slowest node's network or disk."""


async def on_head(inventory: Inventory, *argv: str, stdin: str = "") -> str:
    """Standard output of a command that runs on the head node as root."""
    done = await run_on(inventory.head, *argv, stdin=stdin, deadline_s=3600, root=True)
    if done.returncode:
        raise HarnessError(
            f"{argv[0]} on {inventory.head.name} ended with {done.returncode}: {done.stderr[-300:]}"
        )
    return done.stdout


async def empty(inventory: Inventory, model: str) -> None:
    """Remove all tensor caches, and all pages of the model from the page caches."""
    await make_cold(inventory.backends, inventory.head, model)


async def forget_pages(nodes: list[Node], model: str) -> None:
    """Drop the model and the cached tensors from the page caches; the files stay."""
    script = (
        "import glob, os, sys\n"
        "for path in [sys.argv[1], *glob.glob(sys.argv[2] + '/*')]:\n"
        "    if os.path.exists(path):\n"
        "        file = os.open(path, os.O_RDONLY)\n"
        "        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)\n"
    )
    for node in nodes:
        await run_on(node, "python3", "-", model, str(node.rpc_cache), stdin=script, root=True)


async def bare_load(inventory: Inventory, model: str) -> float:
    """Seconds from exec to health of a llama-server started by hand, with llama.cpp's own split."""
    rpc = ",".join(node.rpc_endpoint for node in inventory.backends)
    devices = ",".join(f"RPC{index}" for index, _ in enumerate(inventory.backends))
    argv = [
        *("/opt/llama.cpp/current/bin/llama-server", "--model", model, "--rpc", rpc, "--device", devices),
        *("-ngl", "99", "--ctx-size", "2048", "--parallel", "1", "--cache-ram", "0", "--no-webui"),
        *("--host", "127.0.0.1", "--port", str(PORT)),
    ]
    said = await on_head(inventory, "python3", "-", *argv, stdin=HEALTH)
    return float(said.strip() or "nan")


async def router_load(router: RouterClient, asked: LoadRequest) -> float:
    """Seconds from exec to health of a load through the router, which then unloads."""
    state = await router.load(asked)
    await router.unload()
    return state.timings.load_s if state.timings and state.timings.load_s else float("nan")


async def timed(inventory: Inventory, *argv: str, stdin: str = "") -> float:
    """Seconds that a command takes on the head node, without SSH's round trip."""
    script = "import subprocess, sys, time\nt = time.monotonic()\n"
    script += (
        "subprocess.run(sys.argv[2:], input=sys.argv[1].encode(), stdout=subprocess.DEVNULL, check=True)\n"
    )
    script += "print(time.monotonic() - t)\n"
    return float(await on_head(inventory, "python3", "-", stdin, *argv, stdin=script))


def warm_floor(inventory: Inventory, done: list[Warmed], disk_bytes_per_s: float) -> float:
    """Seconds that the slowest node's network or disk needs for its data."""
    rate = stated_rate(lab_of(inventory), inventory.head.name)
    wire = max((one.written for one in done if one.source == "pushed"), default=0) * 8 / (rate or 1e9)
    # All nodes of a lab share one disk: their reads of the model and writes to caches add up.
    disk = sum(one.written for one in done) / disk_bytes_per_s
    return max(wire, disk)


async def measure(inventory: Inventory, model: str, rounds: int, push: bool) -> dict[str, object]:
    """Measure all rounds and lower bounds."""
    async with RouterClient(router_address(inventory)) as router:
        path = str((await router.models())[model]["path"])
        asked = LoadRequest(model=model)
        found: list[Round] = []
        await router.unload()
        ranges = (await router.plan(asked, keep=True)).tensors
        lines = "".join(f"{offset} {size}\n" for part in ranges.values() for offset, size in part)
        hashed_s = await timed(inventory, "taskset", "-c", "0", TOOL, "hash", path, stdin=lines)
        await forget_pages([inventory.head], path)
        disk_s = await timed(inventory, "dd", f"if={path}", "of=/dev/null", "bs=4M", "status=none")
        write = "/var/cache/llama.cpp/benchmark"
        written_s = await timed(
            inventory,
            "dd",
            "if=/dev/zero",
            f"of={write}",
            "bs=4M",
            "count=500",
            "conv=fdatasync",
            "status=none",
        )
        await on_head(inventory, "rm", write)
        for _ in range(rounds):
            await empty(inventory, path)
            bare_s = await bare_load(inventory, path)
            await empty(inventory, path)
            started = time.monotonic()
            _, done = await warm(inventory, router, asked, print, push=push)
            warm_s = time.monotonic() - started
            nodes = list(inventory.nodes.values())
            warmed_s = await router_load(router, asked)
            await forget_pages(nodes, path)
            later_s = await router_load(router, asked)
            floor = warm_floor(inventory, done, 500 * (4 << 20) / written_s)
            found.append(Round(bare_s, warm_s, warmed_s, later_s, floor))
            print(
                f"bare {bare_s:.1f} s, warm {warm_s:.1f} s (floor {floor:.1f}), warmed {warmed_s:.1f} s, "
                f"later {later_s:.1f} s",
                flush=True,
            )
    floor_s = max(hashed_s, disk_s)
    bare, warmed = median(one.bare for one in found), median(one.warmed for one in found)
    return {
        "rounds": [asdict(one) for one in found],
        "hash_s": hashed_s,
        "disk_s": disk_s,
        "bare_to_warmed": bare / warmed,
        "warmed_to_floor": warmed / floor_s,
        "bare_to_later": bare / median(one.later for one in found),
        "later_to_floor": median(one.later for one in found) / max(hashed_s, 2 * disk_s),
        "warm_to_floor": median(one.warm / one.warm_floor for one in found if one.warm_floor),
    }


def main() -> None:
    """Print the medians, and the ratios with their goals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", type=Path, default=DEFAULT_INVENTORY)
    parser.add_argument("--model", default="13b-q4_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--push", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = asyncio.run(
        measure(load_inventory(options.inventory), options.model, options.rounds, options.push)
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    print(f"hashing {result['hash_s']:.1f} s, disk {result['disk_s']:.1f} s")
    print(f"bare first load / first load after warm: {result['bare_to_warmed']:.2f} (goal: at least 3)")
    print(f"first load after warm / larger of hashing and disk: {result['warmed_to_floor']:.2f} (goal: 1.5)")
    print(f"the same with cold caches: {result['bare_to_later']:.2f} and {result['later_to_floor']:.2f}")
    print(f"harness warm / its floor: {result['warm_to_floor']:.2f} (goal: 1.3)")


if __name__ == "__main__":
    main()
