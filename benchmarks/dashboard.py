"""Measure the router's CPU time with no viewer and with ten viewers of the dashboard, in one run.

    benchmarks/dashboard.py --seconds 30 --viewers 10

It starts a router on loopback with four backends (the router never connects to them), no pool, thirty model
files and no requests. Each viewer logs in and reads ``/dashboard/events``. The result is utime and stime from
/proc (proc_pid_stat(5)) divided by wall time: 100 % is one core.
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

ADMIN_KEY = "admin-key-of-this-benchmark"


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share(pid: int, seconds: float) -> float:
    """CPU use of a process during the next ``seconds``, in percent of one core."""
    before, began = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_s(pid) - before) / (time.monotonic() - began)


def write_config(folder: Path, port: int) -> Path:
    """Write a configuration with content for the dashboard."""
    for name in ("router.key", "admin.key"):
        (folder / name).write_text(ADMIN_KEY)
    models = folder / "models"
    models.mkdir()
    for number in range(30):
        (models / f"model-{number}.gguf").write_bytes(b"not a model")
    path = folder / "router.json"
    backends = [
        {"node": f"node{n}", "endpoint": f"127.0.0.1:{n}", "memory_bytes": 4 << 30} for n in range(1, 5)
    ]
    path.write_text(
        json.dumps(
            {
                "address": "127.0.0.1",
                "port": port,
                "router_key_file": str(folder / "router.key"),
                "admin_key_file": str(folder / "admin.key"),
                "models_dir": str(models),
                "log_dir": str(folder / "starts"),
                "backends": backends,
            }
        )
    )
    return path


def look(port: int, counted: list[int]) -> None:
    """One viewer: log in and read events until the router exits."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    form = {"content-type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/dashboard/login", urlencode({"key": ADMIN_KEY}), form)
    answer = connection.getresponse()
    cookie = answer.getheader("set-cookie", "").partition(";")[0]
    answer.read()
    connection.request("GET", "/dashboard/events", headers={"cookie": cookie})
    stream = connection.getresponse()
    if stream.status != 200:
        raise SystemExit(f"/dashboard/events answered {stream.status}")
    with suppress(OSError, http.client.HTTPException):
        while line := stream.readline():
            counted.append(len(line))


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--viewers", type=int, default=10)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), port)
        router = subprocess.Popen(
            [sys.executable, "-m", "harness.router", "--config", str(config)], stderr=subprocess.DEVNULL
        )
        try:
            time.sleep(5)
            alone = share(router.pid, arguments.seconds)
            counted: list[int] = []
            for _ in range(arguments.viewers):
                threading.Thread(target=look, args=(port, counted), daemon=True).start()
            time.sleep(3)
            watched = share(router.pid, arguments.seconds)
        finally:
            router.terminate()
            router.wait(60)
    events = [size for size in counted if size > 2]
    if not events:
        raise SystemExit("no viewer saw an event")
    print(
        f"router: {alone:.1f} % of a core with no viewer, {watched:.1f} % with {arguments.viewers}; "
        f"{len(events)} events of {max(events)} bytes"
    )


if __name__ == "__main__":
    main()
