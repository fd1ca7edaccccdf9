"""Compare tokens per second of calibrated placement with llama.cpp's own split, on a deployed inventory.

    benchmarks/placement.py --model 13b-q4_0 --slow node4 --rounds 3   # a lab, node4 at a quarter of its CPU
    benchmarks/placement.py --model 13b-q4_0 --rounds 3                # no change to the nodes

``default`` splits by memory, as llama.cpp does; ``calibrated`` is the plan after ``harness calibrate``.
Rounds are interleaved; each loads the model and measures its answers with llama.cpp's own clock.
"""

import argparse
import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from harness.cluster.inventory import Inventory, load_inventory
from harness.contracts.plan import LoadRequest
from harness.errors import HarnessError
from harness.lab.cgroup import Groups
from harness.planner.device_capacity import Calibration
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import RouterClient, router_address
from harness.runs.metrics import server_decode_rate
from harness.settings import DEFAULT_INVENTORY
from harness.trials.kinds.calibrate import calibrate
from harness.trials.lab import lab_of

TOKENS = 24
ANSWERS = 3


def cpu_limit(inventory: Inventory, node: str, cores: float) -> None:
    """Limit a lab machine to this number of cores; 0 restores the lab's own limit."""
    lab = lab_of(inventory)
    if lab is None:
        raise HarnessError("only a lab machine can have a CPU limit; run without --slow")
    machine = lab.machine(node)
    Groups().limit(lab.group / node, machine.memory, lab.swap, cores or machine.cpu)


async def rate(router: RouterClient, request: LoadRequest) -> tuple[float, dict[str, int]]:
    """Median tokens per second after a new load, and the layers of each node."""
    state = await router.load(request)
    found = []
    for index in range(ANSWERS + 1):
        sent = await router.chat(
            ChatRequest(request.model, "Count.", TOKENS, 600, index=index, warmup=index == 0)
        )
        if sent.error or (one := server_decode_rate(sent)) is None:
            raise HarnessError(f"no answer to time: {sent.error}")
        found.append(one)
    await router.unload()
    layers = {share.node: share.layers for share in state.plan.shares} if state.plan else {}
    return median(found[1:]), layers


async def measure(
    inventory: Inventory, model: str, rounds: int, slow: str | None, cores: float
) -> dict[str, object]:
    """Run all rounds."""
    with ExitStack() as undo:
        if slow:
            cpu_limit(inventory, slow, cores)
            undo.callback(cpu_limit, inventory, slow, 0)
        async with RouterClient(router_address(inventory)) as router:
            await router.unload()
            await router.forget_calibration()
            default = (await router.plan(LoadRequest(model=model, context=1024))).plan
            known: Calibration = await calibrate(inventory, router, None, None, print)
            found: dict[str, list[float]] = {"default": [], "calibrated": []}
            layers: dict[str, dict[str, int]] = {}
            for _ in range(rounds):
                for name, plan in (("default", default), ("calibrated", None)):
                    value, layers[name] = await rate(
                        router, LoadRequest(model=model, plan=plan, context=1024)
                    )
                    found[name].append(value)
                    print(f"{name}: {value:.3f} tokens/s, layers {layers[name]}", flush=True)
    ratio = median(found["calibrated"]) / median(found["default"])
    speeds = {one.node: one.bytes_per_s for one in known.nodes}
    return {"tokens_per_s": found, "layers": layers, "bytes_per_s": speeds, "ratio": ratio}


def main() -> None:
    """Print the medians, and the ratio with its goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", type=Path, default=DEFAULT_INVENTORY)
    parser.add_argument("--model", default="13b-q4_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow", help="lab machine whose CPU is limited")
    parser.add_argument("--cores", type=float, default=0.5, help="its limit: a quarter of two cores")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = asyncio.run(
        measure(load_inventory(options.inventory), options.model, options.rounds, options.slow, options.cores)
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    bar = "at least 1.3" if options.slow else "within 2% of 1"
    print(f"calibrated / default: {result['ratio']:.3f} (goal: {bar})")


if __name__ == "__main__":
    main()
