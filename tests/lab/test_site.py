"""site.yml as a whole on real machines: a dry run finds nothing to change, and the router shards a model."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from harness.settings import ROUTER_PORT, state_dir
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.lab.lab_under_test import LabUnderTest

NODES = ("node1", "node2")
UNITS = {
    "node1": ("llama-rpc-server", "llama-node-monitor"),
    "node2": ("llama-rpc-server", "llama-node-monitor", "llama-pool-server", "llama-router", "llama-redis"),
}
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(deployed: LabUnderTest) -> Ask:
    """POST (or GET, without a body) to the router with one of its keys; an error answer is an answer too."""
    base = f"http://{deployed.inventory.head.address}:{ROUTER_PORT}"
    keys = state_dir(deployed.path)

    def send(path: str, body: dict[str, Any] | None = None, key: str = "router") -> dict[str, Any]:
        request = urllib.request.Request(base + path, None if body is None else json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {(keys / f'{key}.key').read_text().strip()}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                found = json.load(error)
        assert isinstance(found, dict)
        return found

    return send


def test_check_mode_is_clean_on_what_is_deployed(deployed: LabUnderTest) -> None:
    assert deployed.ansible("site.yml", check=True).changed_tasks == []


@pytest.mark.parametrize("name", NODES)
def test_units_are_enabled_and_active(deployed: LabUnderTest, name: str) -> None:
    for unit in UNITS[name]:
        service = deployed.host(name).service(unit)
        assert service.is_enabled, f"{unit} on {name}"
        assert service.is_running, f"{unit} on {name}"


def test_every_node_runs_the_same_hashes(deployed: LabUnderTest) -> None:
    binaries = "sha256sum /opt/llama.cpp/current/bin/rpc-server /opt/llama.cpp/current/bin/llama-server"
    first, second = (deployed.run(name, *binaries.split()).stdout for name in NODES)
    assert re.match(r"[0-9a-f]{64} ", first)
    assert first == second


def test_large_model_is_sharded_over_every_backend(deployed: LabUnderTest, ask: Ask) -> None:
    state = ask("/admin/load", {"model": "1b-q8_0"}, key="admin")
    assert state["distributed"] is True
    assert state["report"]["offloaded"] == state["report"]["layers_total"] == 17
    held = {b["node"]: b["model_bytes"] for b in state["report"]["buffers"] if b["device"].startswith("RPC")}
    planned = {share["node"]: share["model_bytes"] for share in state["plan"]["shares"]}
    assert set(held) == set(planned) == set(NODES)
    assert all(held[name] == pytest.approx(planned[name], rel=0.03) for name in NODES)
    answer = ask(
        "/v1/chat/completions",
        {"model": "1b-q8_0", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]},
    )
    assert answer["usage"]["completion_tokens"] > 0
    ended = ask("/admin/unload", {}, key="admin")
    assert ended["exit"]["code"] == 0
    assert ended["diagnosis"]["class"] == "stopped"


def test_coordinator_without_offloaded_layers_is_reported_as_not_distributed(ask: Ask) -> None:
    state = ask("/admin/load", {"model": "1b-q8_0", "n_gpu_layers": 0}, key="admin")
    assert state["distributed"] is False
    assert state["report"]["offloaded"] == 0
    ask("/admin/unload", {}, key="admin")


def test_small_model_is_answered_by_the_pool(ask: Ask) -> None:
    body = {"model": "smollm2", "stream": False, "messages": [{"role": "user", "content": "Say hello."}]}
    answer = ask("/api/chat", {**body, "options": {"num_predict": 8}})
    assert answer["message"]["content"]
    assert answer["eval_count"] > 0


FAMILIES = {
    "llama_router_requests": "counter",
    "llama_router_tokens": "counter",
    "llama_router_ttft_seconds": "histogram",
    "llama_router_itl_seconds": "histogram",
    "llama_router_queue_length": "gauge",
    "llama_router_queue_oldest_seconds": "gauge",
    "llama_router_coordinator_ends": "counter",
    "llama_router_coordinator_restarts": "counter",
    "llama_router_coordinator_log_lines": "counter",
    "llama_router_backend_state": "gauge",
    "llama_router_node_state": "gauge",
    "llama_router_pool_server_state": "gauge",
}


def scraped(lab: LabUnderTest, key: str) -> dict[str, Metric]:
    """The families of ``/metrics`` as Prometheus's own parser reads them."""
    url = f"http://{lab.inventory.head.address}:{ROUTER_PORT}/metrics"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def test_prometheus_can_scrape_the_deployed_router_with_its_key(deployed: LabUnderTest, ask: Ask) -> None:
    body = {"model": "smollm2", "max_tokens": 2, "messages": [{"role": "user", "content": "Say hello."}]}
    assert ask("/v1/chat/completions", body)["usage"]
    found = scraped(deployed, (state_dir(deployed.path) / "router.key").read_text().strip())
    assert {name: found[name].type for name in FAMILIES} == FAMILIES
    answered = [s.value for s in found["llama_router_requests"].samples if s.labels.get("route") == "pool"]
    assert sum(answered) >= 1
    for family, nodes in (("backend", set(NODES)), ("node", set(NODES)), ("pool_server", {"node2"})):
        samples = found[f"llama_router_{family}_state"].samples
        states = {s.labels["node"]: s.labels["state"] for s in samples if s.value == 1}
        assert set(states) == nodes
        assert not {"silent", "down", "unseen", "set_aside"} & set(states.values()), states


def test_metrics_are_not_for_everybody(deployed: LabUnderTest) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        scraped(deployed, "no-key-of-this-router")
    with refused.value:
        assert refused.value.code == 401


def test_wrong_key_is_refused(ask: Ask) -> None:
    assert ask("/admin/coordinator", key="router")["error"]["class"] == "unauthorized"
    assert "error" not in ask("/admin/coordinator", key="admin")
