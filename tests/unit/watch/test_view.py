"""Rows of the live view, from samples and the router's plan."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from harness.cluster.inventory import Node
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.plan import BackendShare, Plan
from harness.monitor.backend_state import RPC_UNIT
from harness.monitor.sample import Gpu, GpuSource, RpcSocket, Sample, Unit
from harness.watch.table import table
from harness.watch.view import (
    ClusterView,
    ModelShare,
    NodeView,
    node_view,
    plan_in_use,
    router_view,
    shares,
)
from rich.console import Console

SAMPLES = Path(__file__).parents[2] / "data" / "runs" / "loopback" / "samples.jsonl"
GIB = 1 << 30
BACKEND = frozenset({"backends"})
PEER = "10.0.0.2:40112"


def node(name: str, groups: frozenset[str] = BACKEND) -> Node:
    return Node(name, f"10.0.0.{name[-1]}", groups, {})


def sample(**changed: Any) -> Sample:
    recorded = json.loads(SAMPLES.read_text().splitlines()[0])
    return Sample.model_validate({**recorded, "units": {}, "rpc": None, **changed})


def share(name: str, layers: int, device: int = 0) -> BackendShare:
    return BackendShare(
        node=name,
        endpoint=f"10.0.0.{name[-1]}:50052",
        device=device,
        available_bytes=9 * GIB,
        weight=float(layers),
        layers=layers,
        model_bytes=layers * GIB,
        kv_bytes=0,
        compute_bytes=0,
    )


def plan(*given: BackendShare, n_gpu_layers: int = 99) -> Plan:
    total = sum(each.layers for each in given)
    return Plan(
        model="70b",
        model_path="/srv/70b.gguf",
        file_bytes=total * GIB,
        n_gpu_layers=n_gpu_layers,
        layers_total=total,
        shares=list(given),
    )


def view_of(
    name: str, newest: Sample | None, age_s: float = 0.0, share: ModelShare | None = None
) -> NodeView:
    return node_view(node(name), newest, age_s, None, share)


def test_first_backends_hold_the_first_layers() -> None:
    by_node = shares(plan(share("node1", 3), share("node2", 0), share("node3", 5)))
    assert set(by_node) == {"node1", "node3"}
    assert (by_node["node1"].first_layer, by_node["node1"].last_layer) == (0, 2)
    assert (by_node["node3"].first_layer, by_node["node3"].last_layer) == (3, 7)
    assert by_node["node3"].model_bytes == 5 * GIB
    assert by_node["node3"].layers_total == 8


def test_devices_of_one_node_are_one_share() -> None:
    by_node = shares(plan(share("node1", 3), share("node1", 2, device=1), share("node2", 1)))
    assert (by_node["node1"].first_layer, by_node["node1"].last_layer) == (0, 4)
    assert by_node["node1"].model_bytes == 5 * GIB
    assert by_node["node2"].first_layer == 5


@pytest.mark.parametrize(
    ("state", "in_use"),
    [
        (None, False),
        (CoordinatorState(phase=CoordinatorPhase.ABSENT), False),
        (CoordinatorState(phase=CoordinatorPhase.STARTING, plan=plan(share("node1", 3))), True),
        (CoordinatorState(phase=CoordinatorPhase.READY, plan=plan(share("node1", 3))), True),
        (CoordinatorState(phase=CoordinatorPhase.ENDED, plan=plan(share("node1", 3))), False),
        (CoordinatorState(phase=CoordinatorPhase.READY, plan=plan(share("node1", 3), n_gpu_layers=0)), False),
    ],
)
def test_layers_are_shown_only_while_a_coordinator_holds_them(
    state: CoordinatorState | None, in_use: bool
) -> None:
    assert (plan_in_use(state) is not None) is in_use


def test_state_is_what_the_sample_says_whatever_the_clocks_say() -> None:
    busy = sample(rpc=RpcSocket(listening=True, backlog=1, peer=PEER), clock_offset_s=-3600.0)
    view = view_of("node1", busy, 0.4)
    assert (view.state, view.reason) == ("busy", f"serves {PEER}")


def test_silent_node_keeps_its_last_figures_and_says_how_old_they_are() -> None:
    old = sample(rpc=RpcSocket(listening=True, backlog=0))
    silent = view_of("node1", old, 42.3)
    assert (silent.state, silent.age_s) == ("silent", 42.3)
    assert silent.memory_used_bytes == old.memory.used_bytes
    never_heard = node_view(node("node2"), None, 0.0, "No route to host", None)
    assert (never_heard.state, never_heard.age_s) == ("silent", None)
    assert never_heard.reason == "no sample: No route to host"


def test_node_without_a_backend_is_up_while_it_is_heard_of() -> None:
    view = node_view(node("node1", frozenset({"head"})), sample(), 1.0, None, None)
    assert view.state == "up"


def test_restarts_are_those_of_all_units() -> None:
    unit = Unit(active="active", sub="running", main_pid=1, restarts=2, result="success")
    view = view_of("node1", sample(units={RPC_UNIT: unit, "llama-router.service": unit}))
    assert view.restarts == 4
    assert view.units[RPC_UNIT] == "active"


def test_missing_firewall_is_named_where_the_backend_is_fine() -> None:
    unit = Unit(active="activating", sub="auto-restart", main_pid=0, restarts=9, result="exit-code")
    view = view_of("node1", sample(units={"llama-pool-firewall.service": unit}))
    assert view.missing_firewalls == ["llama-pool-firewall.service"]
    console = Console(width=200, record=True, file=StringIO())
    console.print(table(ClusterView(time_ns=1, source="redis", router=router_view(None, None), nodes=[view])))
    text = console.export_text()
    assert "no firewall: llama-pool-firewall.service does not run" in text


def table_text(width: int) -> str:
    share_of = shares(plan(share("node1", 3), share("node2", 5)))
    gpu = Gpu(
        index=0,
        name="Tesla",
        source=GpuSource.NVML,
        memory_total_bytes=16 * GIB,
        memory_used_bytes=4 * GIB,
        use_percent=37.0,
    )
    newest = {
        "node1": (sample(rpc=RpcSocket(listening=True, backlog=1, peer=PEER), gpus=[gpu]), 0.3),
        "node2": (sample(rpc=RpcSocket(listening=True, backlog=0)), 73.0),
    }
    names = ("node1", "node2", "node3")
    view = ClusterView(
        time_ns=1,
        source="rings",
        source_problem="[red]no[/red] Redis",
        router=router_view(None, "no key [bold]here"),
        nodes=[view_of(name, *newest.get(name, (None, 0.0)), share_of.get(name)) for name in names],
    )
    console = Console(width=width, record=True, file=StringIO())
    console.print(table(view))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_and_says_each_state_whole(width: int) -> None:
    text = table_text(width)
    assert max(len(line) for line in text.splitlines()) <= width
    for word in ("node3", "busy", "silent", "73 s", "router: ", "samples: "):
        assert word in text


def test_table_shows_the_share_of_each_node_and_takes_no_markup_from_outside() -> None:
    text = table_text(200)
    assert "70b 0-2/8 3.0" in text
    assert "70b 3-7/8 5.0" in text
    assert "0: 4.0/16.0 37%" in text
    assert f"serves {PEER}" in text
    assert "no key [bold]here" in text
    assert "[red]no[/red] Redis" in text


def test_drained_backend_says_so_and_what_its_monitor_sees() -> None:
    view = node_view(node("node1"), sample(), 1.0, None, None, drained=True)
    assert (view.state, view.memory_total_bytes) == ("drained", sample().memory.total_bytes)
    assert view.reason.startswith("no load is planned on it; ")
