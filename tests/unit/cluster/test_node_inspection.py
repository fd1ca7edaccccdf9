"""What a look at the nodes shows, in words: packets that nobody acknowledges, full caches, other builds."""

from harness.cluster.inventory import Node
from harness.cluster.node_inspection import (
    CacheSeen,
    ConnectionSeen,
    NodeLook,
    ProcessSeen,
    backends_seen,
    builds,
)

NODE = Node("node1", "10.0.0.1", frozenset({"backends"}), {})
HEAD = "10.0.0.2:40000"


def connection(waiting: int, sent_s: float, heard_s: float) -> ConnectionSeen:
    return ConnectionSeen(
        local=HEAD,
        peer=NODE.rpc_endpoint,
        unread_bytes=0,
        waiting_bytes=waiting,
        since_sent_s=sent_s,
        since_heard_s=heard_s,
    )


def look(*connections: ConnectionSeen, processes: tuple[ProcessSeen, ...] = ()) -> NodeLook:
    return NodeLook(processes=list(processes), connections=list(connections), cache=None, unit={})


def process(program: str, pid: int, build: str | None) -> ProcessSeen:
    return ProcessSeen(program=program, pid=pid, state="S", cpu_s=1.0, used_s=0.0, build=build)


def test_bytes_sent_again_and_again_without_an_answer_found_no_way() -> None:
    seen = connection(waiting=54, sent_s=0.9, heard_s=4.5).unheard
    assert seen is not None
    assert seen.startswith("54 bytes to 10.0.0.1:50052 unacknowledged")


def test_backend_that_reads_nothing_still_acknowledges() -> None:
    """A stopped process: its kernel answers each probe of the full window."""
    assert connection(waiting=900_000, sent_s=3.1, heard_s=3.1).unheard is None


def test_quiet_connection_waits_for_nothing() -> None:
    assert connection(waiting=0, sent_s=4.4, heard_s=60.0).unheard is None


def test_either_end_tells_of_a_backend_that_is_cut_off() -> None:
    head = look(connection(54, 0.9, 4.5))
    seen = backends_seen({"node1": look(), "head": head}, [NODE], {}, 3.2)["node1"]
    assert seen.reachable
    assert seen.unheard is not None
    assert seen.unheard.startswith("head: 54 bytes")


def test_node_that_cannot_be_looked_at_is_out_of_reach_with_the_age_of_its_last_sample() -> None:
    seen = backends_seen({"node1": "no route to host"}, [NODE], {"node1": 12.0}, 3.2)["node1"]
    assert (seen.reachable, seen.silent_s) == (False, 12.0)


def test_backend_is_the_units_own_process() -> None:
    other, own = process("rpc-server", 3, None), process("ggml-rpc-server", 7, "11434 (x)")
    found = NodeLook(processes=[other, own], connections=[], cache=None, unit={"MainPID": "7"})
    assert found.backend == own
    assert builds({"node1": found, "node2": "away"}) == {"node1": "11434 (x)"}


def test_llama_server_of_another_build_is_listed_beside_its_nodes_backend() -> None:
    seen = look(processes=(process("rpc-server", 3, "6751 (a)"), process("llama-server", 4, "6792 (b)")))
    assert builds({"head": seen}) == {"head": "6751 (a)", "head (llama-server)": "6792 (b)"}


def test_cache_without_room_for_a_tensor_is_full() -> None:
    cut = ["04516a77f1718052", "15506c7193097e12"]
    cache = CacheSeen(folder="/cache", free_bytes=449_000, total_bytes=57_000_000, files=5, cut=cut)
    assert cache.full == (
        "/cache: 449000 bytes free of 57 MB; 2 of 5 cached tensors are cut, 04516a77f1718052 among them"
    )
    assert cache.model_copy(update={"free_bytes": 1 << 30}).full is None
