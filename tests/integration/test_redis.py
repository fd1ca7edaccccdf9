"""Monitors publish to a real Redis that starts, dies, hangs and fills up; readers see silent nodes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from harness.monitor.common import MonitorError
from harness.monitor.redis import FIELD, LATEST_TTL_MS, latest_key, stream_key
from harness.monitor.redis.publisher import Publisher
from harness.monitor.redis.reader import LatestReader, LatestSamples, RedisUnavailableError
from harness.monitor.redis.writer import Entry, RedisWriter
from harness.monitor.ring import KEEP_LINES, RingWriter, read_since
from harness.monitor.sample import Sample
from tests.integration.redis_server import READER, RedisServer, monitor_of
from tests.node_samples import node_sample

pytestmark = pytest.mark.integration

NODE, OTHER = "node1", "node2"
MONITOR_USER = monitor_of(NODE)
SECOND = 10**9
MONITOR = (sys.executable, "-m", "harness.monitor")


def wait_until(what: str, true: Callable[[], bool], deadline_s: float = 40) -> None:
    end = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end, f"never seen: {what}"
        time.sleep(0.05)


def line(time_ns: int, node: str = NODE) -> str:
    return node_sample(time_ns, node).model_dump_json()


def times_ms(server: RedisServer, node: str = NODE) -> list[int]:
    """Times of a stream's samples, as the samples themselves say, in the stream's order."""
    entries, after = [], "-"
    with server.client() as client:
        while page := client.xrange(stream_key(node), min=after, count=20):
            entries += page
            after = f"({page[-1][0]}"
    times = [json.loads(fields[FIELD])["time_ns"] // 10**6 for _, fields in entries]
    assert [int(entry.split("-")[0]) for entry, _ in entries] == times
    return times


def ring_ms(ring: Path) -> list[int]:
    return [json.loads(text)["time_ns"] // 10**6 for text in read_since(ring)]


async def read_samples(server: RedisServer, *nodes: str) -> LatestSamples:
    async with LatestReader(server.settings(READER)) as reader:
        return await reader.read(nodes)


def publish(server: RedisServer, node: str, value: bytes | str) -> None:
    """What a monitor could say of itself."""
    with server.client(monitor_of(node)) as client:
        client.set(latest_key(node), value, px=LATEST_TTL_MS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that is soon full."""
    server = RedisServer(tmp_path, memory="16M")
    server.start()
    yield server
    server.kill()


class MonitorProcess:
    """A real llama-node-monitor, publishing."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.ring = folder / "ring"
        self.config = folder / "monitor.json"
        self._log_path = folder / "monitor.log"
        values = {"node": NODE, "address": "127.0.0.1", "ring": str(self.ring), "cgroup": "none"}
        settings = server.settings(MONITOR_USER).model_dump(mode="json")
        self.config.write_text(json.dumps({**values, "cgroup_cpu": "none", "redis": settings}))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen([*MONITOR, "run", "--config", str(self.config)], stderr=log)

    def stop(self) -> int:
        assert self._process
        self._process.terminate()
        return self._process.wait(timeout=10)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        return self._log_path.read_text()


@pytest.fixture
def monitor(tmp_path: Path, server: RedisServer) -> Iterator[MonitorProcess]:
    monitor = MonitorProcess(tmp_path, server)
    monitor.start()
    yield monitor
    monitor.end()


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Everything logged so far."""
    lines: list[str] = []

    def read() -> str:
        lines.append(capsys.readouterr().err)
        return "".join(lines)

    return read


@pytest.fixture
def publisher(tmp_path: Path, server: RedisServer) -> Iterator[Publisher]:
    """A publisher that has not been started."""
    publisher = Publisher(server.settings(MONITOR_USER), NODE, tmp_path / "no-ring")
    yield publisher
    publisher.stop()


def test_stream_holds_what_the_ring_holds(server: RedisServer, monitor: MonitorProcess) -> None:
    wait_until("three samples", lambda: len(times_ms(server)) >= 3)
    assert monitor.stop() == 0
    in_ring = ring_ms(monitor.ring)
    published = times_ms(server)
    assert published == in_ring[: len(published)]
    assert len(in_ring) - len(published) <= 1  # the last may still have been on its way
    with server.client() as client:
        newest = json.loads(client.get(latest_key(NODE)))
        assert 0 < client.pttl(latest_key(NODE)) <= LATEST_TTL_MS
    assert newest["time_ns"] // 10**6 == published[-1]


def test_sample_says_how_far_the_clock_is_from_the_head_nodes(
    server: RedisServer, monitor: MonitorProcess
) -> None:
    def offsets() -> list[float]:
        return [
            s for text in read_since(monitor.ring) if (s := json.loads(text)["clock_offset_s"]) is not None
        ]

    wait_until("a sample with an offset", lambda: len(offsets()) > 0)


def test_what_a_killed_redis_missed_comes_later_in_order_and_once(
    server: RedisServer, monitor: MonitorProcess
) -> None:
    wait_until("two samples", lambda: len(times_ms(server)) >= 2)
    server.kill()
    at_death = len(ring_ms(monitor.ring))
    wait_until("samples without Redis", lambda: len(ring_ms(monitor.ring)) >= at_death + 3)
    server.start()
    wait_until("what was missed", lambda: len(times_ms(server)) >= at_death + 4)
    published = times_ms(server)
    assert published == ring_ms(monitor.ring)[: len(published)]
    assert monitor.log.count("redis_unavailable") <= 2  # lost, then refused: not a line for every attempt
    assert "redis_available" in monitor.log


def test_monitor_goes_on_behind_the_last_sample_of_its_earlier_process(
    server: RedisServer, monitor: MonitorProcess
) -> None:
    wait_until("two samples", lambda: len(times_ms(server)) >= 2)
    server.send(signal.SIGSTOP)
    before = len(ring_ms(monitor.ring))
    wait_until("samples that Redis cannot take", lambda: len(ring_ms(monitor.ring)) >= before + 2)
    assert monitor.stop() == 0
    server.send(signal.SIGCONT)
    monitor.start()
    missed = len(ring_ms(monitor.ring))
    wait_until("the old and the new", lambda: len(times_ms(server)) > missed)
    published = times_ms(server)
    assert published == ring_ms(monitor.ring)[: len(published)]


def test_redis_that_hangs_does_not_hold_up_a_sample(server: RedisServer, monitor: MonitorProcess) -> None:
    wait_until("a sample", lambda: len(times_ms(server)) >= 1)
    server.send(signal.SIGSTOP)
    hung_at = len(ring_ms(monitor.ring))
    wait_until("samples meanwhile", lambda: len(ring_ms(monitor.ring)) >= hung_at + 6)
    seconds = [round(ms / 1000) for ms in ring_ms(monitor.ring)]
    server.send(signal.SIGCONT)
    assert seconds == list(range(seconds[0], seconds[-1] + 1))
    wait_until("all of them in Redis", lambda: len(times_ms(server)) >= hung_at + 6)
    published = times_ms(server)
    assert published == ring_ms(monitor.ring)[: len(published)]


def test_full_disk_does_not_stop_samples_to_redis(server: RedisServer, tmp_path: Path) -> None:
    monitor = MonitorProcess(tmp_path, server)
    limited = ["bash", "-c", 'ulimit -f 0; exec "$@"', "-"]
    argv = [*limited, *MONITOR, "run", "--config", str(monitor.config)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        wait_until("samples of a full node", lambda: len(times_ms(server)) >= 3)
        assert ring_ms(monitor.ring) == []
        process.terminate()
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0
        assert log.count("sample_failed") == 1
    finally:
        process.kill()
        process.communicate()


def test_ten_minutes_are_kept_for_a_redis_that_is_away(server: RedisServer, publisher: Publisher) -> None:
    begin = time.time_ns() - 900 * SECOND
    offered = [begin + number * SECOND for number in range(KEEP_LINES + 100)]
    server.kill()
    publisher.start()
    for time_ns in offered:
        publisher.offer(time_ns, line(time_ns))
    server.start()
    wait_until("ten minutes", lambda: len(times_ms(server)) >= KEEP_LINES)
    assert times_ms(server) == [time_ns // 10**6 for time_ns in offered[-KEEP_LINES:]]


def test_redis_that_lost_its_data_gets_the_last_ten_minutes(
    server: RedisServer, publisher: Publisher
) -> None:
    now = time.time_ns()
    offered = [now - (3 - number) * SECOND for number in range(3)]
    publisher.start()
    for time_ns in offered:
        publisher.offer(time_ns, line(time_ns))
    wait_until("all three", lambda: len(times_ms(server)) == 3)
    server.kill()
    server.start()
    publisher.offer(now + SECOND, line(now + SECOND))
    wait_until("all four", lambda: len(times_ms(server)) == 4)
    assert times_ms(server) == [time_ns // 10**6 for time_ns in [*offered, now + SECOND]]


def test_sample_whose_answer_was_lost_is_not_stored_twice(server: RedisServer) -> None:
    now = time.time_ns()
    entries = [Entry(now + number, line(now + number)) for number in (0, SECOND, 2 * SECOND)]
    with RedisWriter(server.settings(MONITOR_USER), NODE) as writer:
        writer.send(entries[:2], entries[1])
        writer.send(entries, entries[2])
        assert writer.last_ms() == entries[2].ms
    assert times_ms(server) == [entry.ms for entry in entries]


def test_full_redis_drops_nothing_and_refuses_in_order(
    small: RedisServer, tmp_path: Path, logged: Callable[[], str]
) -> None:
    publisher = Publisher(small.settings(MONITOR_USER), NODE, tmp_path / "no-ring")
    begin = time.time_ns() - KEEP_LINES * SECOND
    offered = [begin + number * SECOND for number in range(KEEP_LINES)]
    for time_ns in offered:
        publisher.offer(time_ns, line(time_ns) + " " * 40_000)
    publisher.start()
    wait_until("Redis refuses", lambda: "maxmemory" in logged())
    publisher.stop()
    stored = times_ms(small)
    assert 0 < len(stored) < KEEP_LINES
    assert stored == [time_ns // 10**6 for time_ns in offered[: len(stored)]]


def test_node_that_fills_redis_removes_no_sample_of_another_and_has_two_keys(small: RedisServer) -> None:
    now = time.time_ns()
    with RedisWriter(small.settings(monitor_of(OTHER)), OTHER) as other:
        other.send([Entry(now, line(now, OTHER))], Entry(now, line(now, OTHER)))
    with small.client(MONITOR_USER) as client:
        flood = (client.xadd(stream_key(NODE), {FIELD: b"x" * 900_000}) for _ in range(1000))
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            list(flood)
    assert times_ms(small, OTHER) == [now // 10**6]
    # Its monitor is refused too until the stream is deleted, which its own user may do.
    with small.client(MONITOR_USER) as client:
        client.delete(stream_key(NODE))
        client.set(latest_key(NODE), "x")


async def test_stream_of_a_clock_that_was_wrong_is_deleted(
    server: RedisServer, publisher: Publisher, logged: Callable[[], str]
) -> None:
    wrong = time.time_ns() + 3600 * SECOND
    publisher.start()
    publisher.offer(wrong, line(wrong))
    wait_until("the wrong one", lambda: times_ms(server) == [wrong // 10**6])
    right = time.time_ns()
    publisher.offer(right, line(right))
    wait_until("the right one", lambda: times_ms(server) == [right // 10**6])
    assert "redis_stream_deleted" in logged()
    read = await read_samples(server, NODE)
    assert read.latest[NODE] == Sample.model_validate_json(line(right))


def test_ring_of_an_earlier_process_is_published(server: RedisServer, tmp_path: Path) -> None:
    now = time.time_ns()
    ring = RingWriter(tmp_path / "ring")
    for number in range(3):
        ring.append(line(now - (3 - number) * SECOND))
    ring.close()
    publisher = Publisher(server.settings(MONITOR_USER), NODE, tmp_path / "ring")
    publisher.offer(now, line(now))
    publisher.start()
    wait_until("both processes' samples", lambda: len(times_ms(server)) == 4)
    publisher.stop()
    assert times_ms(server) == [(now - back * SECOND) // 10**6 for back in (3, 2, 1, 0)]


def test_missing_password_is_logged_and_waited_for(
    server: RedisServer, tmp_path: Path, logged: Callable[[], str]
) -> None:
    settings = server.settings(MONITOR_USER)
    password = settings.password_file.read_text()
    settings.password_file.unlink()
    publisher = Publisher(settings, NODE, tmp_path / "no-ring")
    publisher.offer(time.time_ns(), line(time.time_ns()))
    publisher.start()
    wait_until("the reason", lambda: "password" in logged())
    settings.password_file.write_text(password)
    wait_until("the sample", lambda: len(times_ms(server)) == 1)
    publisher.stop()


async def test_silent_node_differs_from_one_without_a_stream(server: RedisServer) -> None:
    old = time.time_ns() - 60 * SECOND
    now = time.time_ns()
    for node, time_ns in (("node1", old), ("node2", now)):
        with RedisWriter(server.settings(monitor_of(node)), node) as writer:
            entry = Entry(time_ns, line(time_ns, node))
            writer.send([entry], entry)
    read = await read_samples(server, "node1", "node2", "unknown")
    assert read.latest["node2"] == Sample.model_validate_json(line(now, "node2"))
    assert read.latest["node1"] is None
    assert read.last == {"node1": Sample.model_validate_json(line(old)), "unknown": None}
    assert old < read.time_ns


async def test_sample_of_a_newer_monitor_can_be_read(server: RedisServer) -> None:
    newer = json.dumps({**json.loads(line(5)), "time_ns": time.time_ns(), "mood": "good"})
    publish(server, NODE, newer)
    read = await read_samples(server, NODE)
    assert read.latest[NODE] is not None


def sample_with(**figures: Any) -> str:
    return json.dumps({**json.loads(line(time.time_ns())), **figures})


HOSTILE: dict[str, tuple[Callable[[], bytes | str], str]] = {
    "not UTF-8": (lambda: b"\xff", "sample: Invalid JSON"),
    "a NaN": (lambda: sample_with(cpu_s=float("nan")), "cpu_s: Input should be a finite number"),
    "an infinity": (lambda: sample_with(load1=float("inf")), "load1: Input should be a finite number"),
    "a huge number": (lambda: sample_with(cpu_s=10**400), "cpu_s: Input should be "),
    "a negative size": (lambda: sample_with(memory={"total_bytes": -1}), "memory."),
    "too long": (lambda: b" " * (1 << 20), "it is longer than 256 KiB"),
    "of another node": (lambda: line(time.time_ns(), OTHER), "it says that it is of node 'node2'"),
    "from the future": (lambda: line(time.time_ns() + 3600 * SECOND), "its time is 3600 s ahead"),
    "nested deep": (lambda: "[" * 100_000, "sample: Invalid JSON"),
    "an escape in a name": (lambda: sample_with(units={"\x1b[2J": 1}), "units.\N{REPLACEMENT CHARACTER}[2J"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_node_that_writes_what_is_no_sample_harms_itself_alone(server: RedisServer, kind: str) -> None:
    value, reason = HOSTILE[kind]
    publish(server, NODE, value())
    publish(server, OTHER, line(time.time_ns(), OTHER))
    read = await read_samples(server, NODE, OTHER)
    assert read.refused[NODE].startswith(reason)
    assert len(read.refused[NODE]) < 300
    assert read.latest[NODE] is None
    assert read.latest[OTHER] is not None
    assert list(read.refused) == [NODE]


async def test_key_of_another_type_harms_its_node_alone(server: RedisServer) -> None:
    with server.client(MONITOR_USER) as client:
        client.xadd(latest_key(NODE), {FIELD: "x"})
    publish(server, OTHER, line(time.time_ns(), OTHER))
    read = await read_samples(server, NODE, OTHER)
    assert read.refused[NODE].startswith("its key cannot be read: ")
    assert read.latest[OTHER] is not None


async def test_stream_that_ends_in_no_sample_harms_its_node_alone(server: RedisServer) -> None:
    with server.client(MONITOR_USER) as client:
        client.xadd(stream_key(NODE), {b"\xff": b"\xff" * 1000})
    publish(server, OTHER, line(time.time_ns(), OTHER))
    read = await read_samples(server, NODE, OTHER)
    assert read.refused[NODE].startswith("time_ns: Field required")
    assert read.latest[OTHER] is not None


async def test_sample_without_an_end_is_silent_once_it_is_old(server: RedisServer) -> None:
    with server.client(MONITOR_USER) as client:
        client.set(latest_key(NODE), line(time.time_ns() - 6 * SECOND))
    assert (await read_samples(server, NODE)).latest[NODE] is None


def test_value_of_twenty_mebibytes_is_refused_by_redis(server: RedisServer) -> None:
    with pytest.raises(redis.RedisError):
        publish(server, NODE, b"x" * (20 << 20))
    with server.client(MONITOR_USER) as client, pytest.raises(redis.RedisError):
        client.xadd(stream_key(NODE), {FIELD: b"x" * (20 << 20)})


async def test_reader_names_a_redis_that_does_not_answer(server: RedisServer) -> None:
    server.kill()
    with pytest.raises(RedisUnavailableError, match=f"127.0.0.1:{server.port}"):
        await read_samples(server, NODE)


def test_command_prints_what_redis_holds(server: RedisServer, tmp_path: Path) -> None:
    config = tmp_path / "redis-reader.json"
    config.write_text(server.settings(READER).model_dump_json())
    argv = [*MONITOR, "latest", "--config", str(config), NODE]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["latest"] == {NODE: None}
    server.kill()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("llama-node-monitor: Redis at 127.0.0.1")
    assert len(done.stderr.splitlines()) == 1


async def test_nobody_enters_without_a_password(server: RedisServer) -> None:
    with redis.Redis(port=server.port, protocol=2) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    settings = server.settings(READER)
    settings.password_file.write_text("a guess")
    async with LatestReader(settings) as reader:
        with pytest.raises(RedisUnavailableError, match=r"(?i)invalid username-password"):
            await reader.read([NODE])
    settings.password_file.unlink()
    with pytest.raises(MonitorError, match="cannot read Redis's password"):
        LatestReader(settings)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        (READER, ["SET", latest_key(NODE), "x"]),
        (READER, ["XADD", stream_key(NODE), "*", FIELD, "x"]),
        (READER, ["GET", "something-else"]),
        (READER, ["KEYS", "*"]),
        (MONITOR_USER, ["SET", "something-else", "x"]),
        (MONITOR_USER, ["GET", latest_key(NODE)]),
        (MONITOR_USER, ["SET", latest_key(OTHER), "x"]),
        (MONITOR_USER, ["SET", f"{latest_key(NODE)}0", "x"]),
        (MONITOR_USER, ["DEL", stream_key(OTHER)]),
        (MONITOR_USER, ["XADD", stream_key(OTHER), "*", FIELD, "x"]),
        (MONITOR_USER, ["XREVRANGE", stream_key(OTHER), "+", "-"]),
        (MONITOR_USER, ["SET", latest_key(OTHER), "x", "GET"]),
        *(
            (user, [*command])
            for user in (READER, MONITOR_USER)
            for command in (
                ["CONFIG", "GET", "*"],
                ["SHUTDOWN"],
                ["FLUSHALL"],
                ["ACL", "LIST"],
                ["REPLICAOF", "a", "1"],
            )
        ),
    ],
)
def test_user_may_do_only_its_work(server: RedisServer, user: str, command: list[str]) -> None:
    with server.client(user) as client, pytest.raises(redis.ResponseError, match=r"(?i)no permissions"):
        client.execute_command(*command)


def test_configuration_holds_no_password(server: RedisServer) -> None:
    text = (server.folder / "redis.conf").read_text()
    assert "of-the-" not in text
    assert text.count(" #") >= 2
