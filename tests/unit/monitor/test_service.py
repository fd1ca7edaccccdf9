"""The monitor as a whole: when it samples, its configuration, what its command prints, what it imports."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness.monitor.__main__ import main
from harness.monitor.common import MonitorError
from harness.monitor.config import load_config
from harness.monitor.redis import RedisSettings
from harness.monitor.redis import publisher as publisher_module
from harness.monitor.redis.publisher import Publisher
from harness.monitor.ring import RingWriter
from harness.monitor.service import Sampler, next_tick, sample_every_second

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
    ("values", "message"),
    [
        ({"address": "node1.example"}, "address"),
        ({"rpc_port": 70000}, "rpc_port"),
        ({"interval": 5}, "interval"),
        ({"node": ""}, "node"),
        ({"cgroup": "/nowhere/at/all"}, "cgroup: no folder at /nowhere/at/all"),
    ],
)
def test_wrong_configuration_is_one_line_that_names_the_key(
    config: Path, values: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", str(changed(config, **values))]) == 1
    error = capsys.readouterr().err
    assert message in error
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


def test_wrong_reader_settings_are_one_line_that_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "redis-reader.json"
    config.write_text('{"address": "node1", "username": "llama-reader", "password_file": "/x"}')
    assert main(["latest", "--config", str(config), "node1"]) == 1
    error = capsys.readouterr().err
    assert "redis-reader.json: address: " in error
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_publisher_that_dies_ends_the_monitor(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(publisher_module, "RedisWriter", broken)
    settings = RedisSettings.model_validate(
        {"address": "127.0.0.1", "username": "llama-monitor", "password_file": "/none"}
    )
    publisher = Publisher(settings, "node1", config.parent / "ring")
    publisher.start()
    publisher.stop()
    with pytest.raises(MonitorError, match="publisher"):
        sample_every_second(Sampler(load_config(config)), RingWriter(config.parent / "ring"), publisher)


def test_monitor_imports_nothing_of_the_harness_but_its_own_folder() -> None:
    for path in MONITOR.rglob("*.py"):
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


def loaded_by(module: str) -> set[str]:
    code = f"import {module}, sys; print(*sys.modules)"
    python = [sys.executable, "-c", code]
    return set(
        subprocess.run(python, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split()
    )


def test_running_the_monitor_loads_nothing_heavy() -> None:
    modules = loaded_by("harness.monitor.service")
    assert not {"pandas", "matplotlib", "numpy", "aiohttp", "asyncio", "yaml", "redis", "pynvml"} & modules
    own = {name for name in modules if name.startswith("harness.")}
    assert all(name.startswith("harness.monitor") for name in own)


def test_tail_does_not_load_the_model_of_samples() -> None:
    assert "pydantic" not in loaded_by("harness.monitor.__main__")
