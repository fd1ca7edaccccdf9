"""Measure an upgrade under load: the downtime of the service, and whether a request is lost.

    benchmarks/upgrade.py --build 11434 --model 1b-q8_0 --clients 4          # from the inventory's pin
    benchmarks/upgrade.py --build 11434 --model 1b-q8_0 --clients 4 --back   # and back afterwards

Clients send short requests one after the other to the model over the backends, from before the playbook
starts until after it ends. If no cache has the new build, the playbook builds it meanwhile. ``--extra``
passes variables to the playbook. ``away`` is the playbook's own figure: from the stop of the coordinator to
the first request that continues. ``gap`` is the longest time in which no client got an answer.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path

from harness.cluster.inventory import Inventory, load_inventory
from harness.settings import DEFAULT_INVENTORY, PLAYBOOKS, ROUTER_PORT, state_dir

DEADLINE_S = 1800


class Client(threading.Thread):
    """Sends one request after the other; keeps the end time and the status of each."""

    def __init__(self, url: str, key: str, model: str) -> None:
        super().__init__()
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._url = url + "/v1/completions"
        self._body = json.dumps({"model": model, "prompt": "One two", "max_tokens": 8}).encode()
        self.stop = threading.Event()
        self.ended: list[tuple[float, int]] = []

    def run(self) -> None:
        """Send requests until stopped."""
        while not self.stop.is_set():
            request = urllib.request.Request(self._url, self._body, self._headers)
            try:
                with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                    answer.read()
                    status = answer.status
            except urllib.error.HTTPError as error:
                status = error.code
            except OSError:
                status = 0
            self.ended.append((time.monotonic(), status))


def upgrade(inventory: Inventory, build: int, extra: list[str], *tags: str) -> tuple[int, str]:
    """Run the playbook; returns its exit status and its output."""
    tool = Path(sys.executable).with_name("ansible-playbook")
    argv = [
        str(tool),
        "-i",
        str(inventory.path),
        str(PLAYBOOKS / "upgrade.yml"),
        "-e",
        f"llama_cpp_build={build}",
    ]
    for variable in extra:
        argv += ["-e", variable]
    done = subprocess.run([*argv, *tags], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def said(text: str) -> str:
    """The playbook's last message about the result."""
    messages = ("was interrupted for", "was not kept")
    lines = [line.strip() for line in text.splitlines() if any(message in line for message in messages)]
    return lines[-1] if lines else "nothing: " + " ".join(text.split()[-20:])


def measure(
    inventory: Inventory, build: int, model: str, clients: int, extra: list[str]
) -> dict[str, object]:
    """Run one upgrade under load."""
    url = f"http://{inventory.head.address}:{inventory.head.variables.get('router_port', ROUTER_PORT)}"
    key = (state_dir(inventory.path) / "router.key").read_text().strip()
    asking = [Client(url, key, model) for _ in range(clients)]
    for client in asking:
        client.start()
    while not all(client.ended for client in asking):
        time.sleep(0.2)
    began = time.monotonic()
    code, text = upgrade(inventory, build, extra)
    seconds = time.monotonic() - began
    time.sleep(3)
    for client in asking:
        client.stop.set()
    for client in asking:
        client.join()
    ended = sorted(pair for client in asking for pair in client.ended)
    moments = [moment for moment, _ in ended]
    return {
        "playbook": code,
        "said": said(text),
        "playbook_s": round(seconds, 1),
        "requests": len(ended),
        "lost": sum(status != 200 for _, status in ended),
        "gap_s": round(max(b - a for a, b in pairwise(moments)), 1),
    }


def main() -> None:
    """Print the result as JSON; exit status 1 if a request was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", type=Path, default=DEFAULT_INVENTORY)
    parser.add_argument("--build", type=int, required=True)
    parser.add_argument("--model", default="1b-q8_0")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument(
        "--back", action="store_true", help="then go back to the inventory's pin in the same way"
    )
    parser.add_argument("--extra", action="append", default=[], help="variable=value for the playbook")
    options = parser.parse_args()
    inventory = load_inventory(options.inventory)
    builds = [options.build]
    if options.back:
        builds.append(int(inventory.head.variables["llama_cpp_build"]))
    results = {}
    for build in builds:
        results[build] = measure(inventory, build, options.model, options.clients, options.extra)
        print(json.dumps({build: results[build]}, indent=1), flush=True)
    sys.exit(1 if any(result["lost"] for result in results.values()) else 0)


if __name__ == "__main__":
    main()
