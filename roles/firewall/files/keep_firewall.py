#!/usr/bin/python3 -IS
"""Keeps one nftables table as its file says: loads it, and loads it again when something has changed it.

    keep_firewall.py TABLE FILE

``nft flush ruleset``, which a start or stop of nftables.service runs, deletes the tables of everybody. The
kernel reports each change of its tables (NFNLGRP_NFTABLES): after each report the table is compared with
what it was when it was loaded, without its counters. systemd hears READY=1 once it is loaded. When it cannot
be loaded the program ends with nft's message, and with it, by BindsTo=, what the table protects.
"""

import os
import socket
import subprocess
import sys
import time

NETLINK_NETFILTER = 12  # linux/netlink.h
NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
NFT = "/usr/sbin/nft"
REPORT_BYTES = 1 << 16
TRIES = 100
PAUSE_S = 0.1
"""Between two comparisons: a busy container host changes its own tables many times a second."""


def listed(table: str) -> str:
    """The table as nft lists it; empty where it is not loaded."""
    done = subprocess.run(
        [NFT, "--stateless", "list", "table", "inet", table], capture_output=True, text=True
    )
    return done.stdout if done.returncode == 0 else ""


def load(table: str, file: str) -> str:
    """Load the file, all of it or nothing; the table as nft lists it then.

    Something else may change the table before it is listed: the listing is true when it was the same twice.
    """
    before = ""
    for _ in range(TRIES):
        done = subprocess.run([NFT, "--file", file], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"table inet {table} cannot be loaded: {done.stderr.strip()}")
        found = listed(table)
        if found and found == before:
            return found
        before = found
    sys.exit(f"table inet {table} was changed {TRIES} times just after it was loaded")


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where it did not start this."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(state.encode(), path.replace("@", "\0", 1) if path.startswith("@") else path)


def wait_for_change(reports: socket.socket) -> None:
    """Wait until the kernel reports a change, or that it could not report one (ENOBUFS)."""
    flags = 0
    while True:
        try:
            reports.recv(REPORT_BYTES, flags)
        except BlockingIOError:
            return
        except OSError:
            pass
        flags = socket.MSG_DONTWAIT


def main() -> None:
    """Load the table and keep it until SIGTERM."""
    table, file = sys.argv[1:]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as reports:
        reports.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
        expected = load(table, file)
        notify("READY=1")
        while True:
            wait_for_change(reports)
            if (seen := listed(table)) != expected:
                expected = load(table, file)
                if seen != expected:  # else somebody loaded a new file: a reload of this unit
                    what = "was changed" if seen else "was gone"
                    print(f"<4>table inet {table} {what}; it is loaded again", file=sys.stderr, flush=True)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
