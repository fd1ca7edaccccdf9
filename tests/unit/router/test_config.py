import json
from pathlib import Path
from typing import Any

import pytest
from harness.errors import HarnessError
from harness.router.config import load_config, read_keys

GOOD: dict[str, Any] = {
    "address": "10.0.0.1",
    "backends": [{"node": "a", "endpoint": "10.0.0.2:50052", "memory_bytes": 1}],
}


def write(tmp_path: Path, config: Any) -> Path:
    path = tmp_path / "router.json"
    path.write_text(json.dumps(config))
    return path


def test_backends_keep_the_order_of_the_file(tmp_path: Path) -> None:
    backends = [{"node": n, "endpoint": "10.0.0.2:1", "memory_bytes": 1} for n in ("b", "a", "c")]
    config = load_config(write(tmp_path, GOOD | {"backends": backends}))
    assert [backend.node for backend in config.backends] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"backends": [{"node": "a", "endpoint": "host:50052", "memory_bytes": 1}]}, "endpoint"),
        ({"pool": [{"node": "a", "url": "file:///x", "models": []}]}, "url"),
        ({"load_deadline_s": 0}, "load_deadline_s"),
    ],
)
def test_wrong_key_is_named_in_one_line(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(HarnessError, match=named) as refused:
        load_config(write(tmp_path, GOOD | changed))
    assert "\n" not in str(refused.value)


def test_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"absent\.json: No such file"):
        load_config(tmp_path / "absent.json")


def test_short_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    with pytest.raises(HarnessError, match="16 characters") as refused:
        read_keys(tmp_path / "key")
    assert "hunter2" not in str(refused.value)


def test_keys_of_several_users_stand_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "router.key"
    file.write_text("# the team\na-key-of-one-user\n\nthe-key-of-another\n")
    assert read_keys(file) == ["a-key-of-one-user", "the-key-of-another"]
    file.write_text("a-key-of-one-user\nshort\n")
    with pytest.raises(HarnessError, match="16 characters"):
        read_keys(file)
    file.write_text("# nobody\n")
    with pytest.raises(HarnessError, match="16 characters"):
        read_keys(file)
