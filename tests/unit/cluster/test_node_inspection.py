"""What inspected nodes show: bytes that nobody acknowledges, full caches, builds, a clock's offset."""

from harness.cluster.inventory import Node
from harness.cluster.node_inspection import (
    CacheDisk,
    LlamaProcess,
    NodeInspection,
    RpcConnection,
    backend_evidence,
    builds,
    clock_offset,
)

NODE = Node("node1", "10.0.0.1", frozenset({"backends"}), {})
HEAD = "10.0.0.2:40000"


def connection(waiting: int, sent_s: float, heard_s: float) -> RpcConnection:
    return RpcConnection(
        local=HEAD,
        peer=NODE.rpc_endpoint,
        unread_bytes=0,
        waiting_bytes=waiting,
        since_sent_s=sent_s,
        since_acknowledged_s=heard_s,
    )


def inspection(*connections: RpcConnection, processes: tuple[LlamaProcess, ...] = ()) -> NodeInspection:
    return NodeInspection(processes=list(processes), connections=list(connections), cache=None, unit={})


def process(program: str, pid: int, build: str | None) -> LlamaProcess:
    return LlamaProcess(program=program, pid=pid, state="S", cpu_s=1.0, used_s=0.0, build=build)


def test_bytes_that_the_peer_does_not_acknowledge_are_named() -> None:
    evidence = connection(waiting=54, sent_s=0.9, heard_s=4.5).unacknowledged
    assert evidence is not None
    assert evidence.startswith("54 bytes to 10.0.0.1:50052 unacknowledged")


def test_backend_that_reads_nothing_still_acknowledges() -> None:
    """A stopped process: its kernel answers each probe of the full window."""
    assert connection(waiting=900_000, sent_s=3.1, heard_s=3.1).unacknowledged is None


def test_quiet_connection_waits_for_nothing() -> None:
    assert connection(waiting=0, sent_s=4.4, heard_s=60.0).unacknowledged is None


def test_either_end_shows_that_a_backend_is_cut_off() -> None:
    head = inspection(connection(54, 0.9, 4.5))
    evidence = backend_evidence({"node1": inspection(), "head": head}, [NODE], {}, 3.2)["node1"]
    assert evidence.reachable
    assert evidence.unacknowledged is not None
    assert evidence.unacknowledged.startswith("head: 54 bytes")


def test_unreachable_node_has_the_age_of_its_last_sample() -> None:
    evidence = backend_evidence({"node1": "no route to host"}, [NODE], {"node1": 12.0}, 3.2)["node1"]
    assert (evidence.reachable, evidence.silent_s) == (False, 12.0)


def test_backend_is_the_units_own_process() -> None:
    other, own = process("rpc-server", 3, None), process("ggml-rpc-server", 7, "11434 (x)")
    node = NodeInspection(processes=[other, own], connections=[], cache=None, unit={"MainPID": "7"})
    assert node.backend == own
    assert builds({"node1": node, "node2": "away"}) == {"node1": "11434 (x)"}


def test_llama_server_of_another_build_is_listed_beside_its_nodes_backend() -> None:
    evidence = inspection(
        processes=(process("rpc-server", 3, "6751 (a)"), process("llama-server", 4, "6792 (b)"))
    )
    assert builds({"head": evidence}) == {"head": "6751 (a)", "head (llama-server)": "6792 (b)"}


def test_cache_without_room_for_a_tensor_is_full() -> None:
    cut = ["04516a77f1718052", "15506c7193097e12"]
    cache = CacheDisk(folder="/cache", free_bytes=449_000, total_bytes=57_000_000, files=5, cut=cut)
    assert cache.full == (
        "/cache: 449000 bytes free of 57 MB; 2 of 5 cached tensors are cut, 04516a77f1718052 among them"
    )
    assert cache.model_copy(update={"free_bytes": 1 << 30}).full is None


S = 10**9


def test_node_that_answers_in_the_middle_of_the_round_trip_is_measured_exactly() -> None:
    offset, error = clock_offset(100 * S, 130 * S + S // 2, 130 * S + S // 2, 101 * S)
    assert (offset, error) == (30 * S, S // 2)


def test_time_that_the_node_took_to_answer_is_no_error() -> None:
    """One second of a round trip of 1.2 s was the script's own."""
    offset, error = clock_offset(100 * S, 95 * S + S // 10, 96 * S + S // 10, 101 * S + S // 5)
    assert (offset, error) == (-5 * S, S // 10)


def test_true_offset_lies_within_the_error_wherever_the_time_was_lost() -> None:
    for there, back in ((0, S), (S, 0), (S // 3, S // 7)):
        for ahead in (-3 * S, 0, 8 * S):
            began = 100 * S + there + ahead
            offset, error = clock_offset(100 * S, began, began + S, 100 * S + there + S + back)
            assert abs(offset - ahead) <= error
