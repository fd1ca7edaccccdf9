"""Readiness of the router, and the states of pool servers."""

from pathlib import Path
from typing import Any

from harness.router.api.health import not_ready, pool_states, unserved_models
from harness.router.config import Backend, RouterConfig

BACKEND = Backend(node="a", endpoint="10.0.0.2:50052", memory_bytes=1)


def test_router_is_ready_where_some_request_can_be_served(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    nothing = RouterConfig(address="127.0.0.1", llama_server=server)
    assert not_ready(nothing, closing=False) == ["neither a pool server nor a backend is configured"]
    config = nothing.model_copy(update={"backends": [BACKEND]})
    assert "no llama-server" in not_ready(config, closing=False)[0]
    server.touch(mode=0o755)
    assert not_ready(config, closing=False) == []
    assert not_ready(config, closing=True) == ["the router is stopping"]


def test_a_nodes_pool_server_is_ready_set_aside_or_unseen_and_the_best_of_several_counts() -> None:
    servers = [
        {"node": "node1", "seen": True, "set_aside_s": 4.5},
        {"node": "node1", "seen": True, "set_aside_s": 0.0},
        {"node": "node2", "seen": True, "set_aside_s": 0.1},
        {"node": "node3", "seen": False, "set_aside_s": 0.0},
    ]
    assert pool_states(servers) == {"node1": "ready", "node2": "set_aside", "node3": "unseen"}
    assert pool_states(servers[:1]) == {"node1": "set_aside"}


def pool_server(*models: str, seen: bool = True, set_aside_s: float = 0.0) -> dict[str, Any]:
    return {"node": "n", "models": list(models), "seen": seen, "set_aside_s": set_aside_s}


def test_model_that_no_pool_server_serves_is_named(tmp_path: Path) -> None:
    hung, other = pool_server("tiny", "both", set_aside_s=9), pool_server("both")
    assert unserved_models([hung, other]) == ["no pool server answers for model tiny"]
    assert unserved_models([pool_server("tiny", seen=False), pool_server(seen=False)]) == [
        "no pool server answers for model tiny", "1 of the pool's servers have not answered yet",
    ]  # fmt: skip
    assert unserved_models([other]) == []


def test_router_whose_pool_is_gone_is_ready_only_with_a_coordinator(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    alone = RouterConfig(address="127.0.0.1", llama_server=server)
    gone = [pool_server("tiny", set_aside_s=9)]
    assert not_ready(alone, closing=False, pool=gone) == ["no pool server answers for model tiny"]
    assert not_ready(alone, closing=False, pool=[pool_server("tiny")]) == []
    with_backends = alone.model_copy(update={"backends": [BACKEND]})
    assert len(not_ready(with_backends, closing=False, pool=gone)) == 2
    server.touch(mode=0o755)
    assert not_ready(with_backends, closing=False, pool=gone) == []
