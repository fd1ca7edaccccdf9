"""The monitor as a whole: when it samples, what it is told, what its command prints, what it depends on."""

import ast
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.monitor import fields
from harness.monitor.__main__ import main
from harness.monitor.clock import next_tick
from harness.monitor.ring import RingWriter
from harness.monitor.sample import Sample

REPOSITORY = Path(__file__).parents[3]
MONITOR = REPOSITORY / "harness" / "monitor"


@pytest.mark.parametrize(
    ("previous", "now", "expected"),
    [
        (0, 99.3, 100),  # the first
        (100, 100.004, 101),
        (100, 100.99, 101),
        (100, 99.9997, 101),  # woken a moment early: 100 is not sampled twice
        (100, 103.2, 104),  # a slow sample: what passed is skipped, not made up for
        (100, 40.5, 41),  # the clock was set back
        (100, 5000.5, 5001),  # the clock was set forward
    ],
)
def test_every_whole_second_is_sampled_once(previous: int, now: float, expected: int) -> None:
    assert next_tick(previous, now) == expected


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "monitor.json"
    values = {
        "node": "node1",
        "address": "127.0.0.1",
        "rpc_port": 50052,
        "units": [],
        "ring": str(tmp_path / "ring"),
        "cgroup": "none",
        "cgroup_cpu": "none",
    }
    path.write_text(json.dumps(values))
    return path


def changed(config: Path, **values: object) -> Path:
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))
    return config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"address": "node1.example"}, "address"),
        ({"rpc_port": 70000}, "rpc_port"),
        ({"interval": 5}, "interval"),
        ({"node": ""}, "node"),
        ({"cgroup": "/nowhere/at/all"}, "cgroup: no folder at /nowhere/at/all"),
    ],
)
def test_wrong_configuration_is_one_line_that_names_the_key(
    config: Path, values: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", str(changed(config, **values))]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert str(config) in error
    assert error.count("\n") == 1


def test_missing_or_broken_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("none.json", None), ("broken.json", "{"), ("list.json", "[]")):
        if content is not None:
            (tmp_path / name).write_text(content)
        for command in ("run", "tail", "check"):
            assert main([command, "--config", str(tmp_path / name)]) == 1
            error = capsys.readouterr().err
            assert name in error
            assert error.count("\n") == 1


def test_tail_prints_what_was_sampled_since(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring = RingWriter(config.parent / "ring")
    for time_ns in (1, 2, 3):
        ring.append(json.dumps({"time_ns": time_ns}))
    ring.close()
    assert main(["tail", "--config", str(config), "--since", "1"]) == 0
    assert [json.loads(line)["time_ns"] for line in capsys.readouterr().out.splitlines()] == [2, 3]


def test_tail_without_a_ring_says_what_to_look_at(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tail", "--config", str(config)]) == 1
    assert "llama-node-monitor.service" in capsys.readouterr().err


def test_check_fails_when_no_sample_comes(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(config), "--within", "0.3"]) == 1
    assert "no new sample" in capfd.readouterr().err


@pytest.fixture
def monitor(config: Path) -> Iterator["subprocess.Popen[str]"]:
    process = command(config, "run")
    yield process
    process.kill()
    process.communicate()


def command(config: Path, *words: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "harness.monitor", *words, "--config", str(config)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)


def test_samples_come_on_whole_seconds_and_sigterm_ends_cleanly(
    config: Path, monitor: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    time.sleep(4.5)
    monitor.send_signal(signal.SIGTERM)
    _, said = monitor.communicate(timeout=5)
    assert monitor.returncode == 0
    assert "node1: a sample every second" in said
    main(["tail", "--config", str(config)])
    samples = [Sample.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert len(samples) >= 3
    seconds = [round(sample.time_ns / 1e9) for sample in samples]
    assert seconds == list(range(seconds[0], seconds[0] + len(seconds)))
    assert all(sample.time_ns / 1e9 - second < 0.5 for sample, second in zip(samples, seconds, strict=True))


def test_follower_ends_when_its_reader_is_gone(config: Path) -> None:
    (config.parent / "ring").mkdir()
    follower = command(config, "tail", "--follow")
    time.sleep(0.5)
    assert follower.poll() is None
    assert follower.stdout is not None
    follower.stdout.close()
    assert follower.wait(timeout=5) == 0
    assert follower.stderr is not None
    assert follower.stderr.read() == ""
    follower.stderr.close()


def test_full_disk_does_not_end_the_monitor(config: Path) -> None:
    limited = ["bash", "-c", 'ulimit -f 0; exec "$@"', "-"]
    argv = [*limited, sys.executable, "-m", "harness.monitor", "run", "--config", str(config)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    time.sleep(4)
    assert process.poll() is None
    process.terminate()
    _, said = process.communicate(timeout=5)
    assert process.returncode == 0
    assert said.count("no sample") == 1


def test_monitor_imports_nothing_of_the_harness_but_its_own_folder() -> None:
    for path in MONITOR.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [node.module or ""]
            else:
                continue
            foreign = [
                n
                for n in names
                if n.split(".")[0] == "harness" and n.split(".")[:2] != ["harness", "monitor"]
            ]
            assert not foreign, f"{path.name} imports {foreign}"


def test_running_the_monitor_loads_nothing_heavy() -> None:
    code = "import harness.monitor.service, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    modules = set(loaded.stdout.split())
    assert not {"pandas", "matplotlib", "numpy", "aiohttp", "asyncio", "yaml"} & modules
    own = {name for name in modules if name.startswith("harness.")}
    assert all(name.startswith("harness.monitor") for name in own)


def test_page_of_fields_is_up_to_date() -> None:
    assert (REPOSITORY / "docs" / "node-sample.md").read_text() == fields.markdown(), (
        "run: python -m harness.monitor.fields > docs/node-sample.md"
    )


def test_every_field_says_what_it_means() -> None:
    rows = [line for line in fields.markdown().splitlines() if line.startswith("| `")]
    assert rows
    assert all(row.split("|")[3].strip() for row in rows)
