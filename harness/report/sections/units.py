"""Section 2, continued: how the project's units ran on each node, and how closed their sandboxes were."""

from dataclasses import dataclass

from harness.contracts.run_records import NodeFacts
from harness.report.data import RunData
from harness.report.format import size
from harness.report.sections.cluster import colour_place

CLOSED, OPEN = 2.0, 5.0
"""Exposure up to which a unit counts as closed, and from which as open (systemd-analyze calls 5 medium)."""
LIMITS = {"MemoryHigh": "high", "MemoryMax": "max", "MemorySwapMax": "swap max"}
UNLIMITED = ("infinity", str(2**64 - 1))
SHOWN = {
    "User": "user",
    "Restart": "restart",
    "OOMScoreAdjust": "OOM score",
    "ProtectSystem": "system",
    "IPAddressAllow": "admits",
}


@dataclass(frozen=True)
class UnitRow:
    """One unit on one node at the start of the run."""

    node: str
    colour: int
    unit: str
    state: str
    good: bool
    restarts: int | None
    exposure: float | None
    rating: str
    """``closed``, ``medium`` or ``open``; empty where it was not scored."""
    settings: list[tuple[str, str]]


def units(run: RunData) -> list[UnitRow]:
    """Every unit of the project that was found on a node."""
    return [
        _unit(run, node, name, properties)
        for node in run.manifest.nodes
        for name, properties in sorted(node.units.items())
    ]


def _unit(run: RunData, node: NodeFacts, name: str, properties: dict[str, str]) -> UnitRow:
    state, sub = properties.get("ActiveState", "unknown"), properties.get("SubState")
    restarts = properties.get("NRestarts", "")
    score = node.exposure.get(name)
    return UnitRow(
        node=node.name,
        colour=colour_place(run, node.name),
        unit=name.removesuffix(".service").removeprefix("llama-"),
        state=f"{state} ({sub})" if sub and sub != state else state,
        good=state == "active",
        restarts=int(restarts) if restarts.isdigit() else None,
        exposure=score,
        rating=""
        if score is None
        else "closed"
        if score <= CLOSED
        else "open"
        if score >= OPEN
        else "medium",
        settings=_settings(properties),
    )


def _settings(properties: dict[str, str]) -> list[tuple[str, str]]:
    shown = [(word, properties[key]) for key, word in SHOWN.items() if properties.get(key)]
    limits = [
        f"{word} {size(float(properties[key]))}"
        for key, word in LIMITS.items()
        if properties.get(key, "").isdigit() and properties[key] not in UNLIMITED
    ]
    if any(key in properties for key in LIMITS):
        shown.append(("memory", ", ".join(limits) or "no limit"))
    return shown
