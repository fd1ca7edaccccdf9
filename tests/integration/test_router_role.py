"""What the role ``router`` writes: every setting of an operator, and a unit in a tight sandbox."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.cluster.ansible import run_playbook
from harness.router.config import RouterConfig, load_config

HERE = Path(__file__).parent
ROLE = HERE.parents[1] / "roles" / "router"
SCORE = 1.3
"""What docs/security.md promises of the unit."""
NOBODYS = {"oom_score_adj", "poll_s"}
"""Settings that an operator has no reason to change."""
INVENTORY = """
all: {hosts: {node2: {ansible_host: 10.0.0.1}, node1: {ansible_host: 10.0.0.2}}}
head: {hosts: {node2: {}}}
backends: {hosts: {node1: {}, node2: {}}}
pool: {hosts: {node2: {}}}
"""
SET = {
    "router_body_limit": "1M",
    "router_head_limit": "8K",
    "router_headers_limit": 20,
    "router_head_timeout_s": 3,
    "router_connections_limit": 64,
    "router_connections_per_address": 65,
    "router_admin_reserve": 4,
    "router_keep_alive_s": 5,
    "router_send_timeout_s": 9,
    "router_requests_per_key": 10,
    "router_requests_per_s_per_key": 11,
    "router_queue_per_key": 12,
    "router_bodies_limit": "64M",
    "router_bodies_per_key": "2M",
    "router_memory_max": "8G",
    "router_dashboard": False,
    "router_request_timeout_s": 60,
    "router_queue_wait_s": 61,
    "router_switch_drain_s": 62,
    "router_backend_wait_s": 6,
    "router_suspect_s": 7,
    "router_first_token_deadline_s": 0,
    "router_keep_starts": 8,
    "router_keep_logs": "1M",
}


def written(folder: Path, **variables: Any) -> Path:
    """The folder with what the role writes."""
    (folder / "hosts.yml").write_text(INVENTORY)
    run_playbook(HERE / "router_role.yml", folder / "hosts.yml", {"folder": str(folder), **variables})
    return folder


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("deployed"))


def test_every_setting_but_the_routers_own_can_be_set_by_the_role(deployed: Path) -> None:
    optional = {"ollama_models", "large_model_bytes"}
    given = json.loads((deployed / "router.json").read_text()).keys()
    assert given | NOBODYS | optional == RouterConfig.model_fields.keys()


def test_defaults_of_the_role_are_those_of_the_router(deployed: Path) -> None:
    config = load_config(deployed / "router.json")
    own = {"address", "state_dir", "backends", "pool", "redis", "models_dir", "log_dir"}
    changed = {
        name
        for name, field in RouterConfig.model_fields.items()
        if name not in own and getattr(config, name) != field.default
    }
    assert changed == set()


def test_what_an_operator_sets_reaches_the_router(tmp_path: Path) -> None:
    folder = written(tmp_path, **SET)
    config = load_config(folder / "router.json")
    assert (config.body_limit_bytes, config.head_limit_bytes, config.headers_limit) == (1 << 20, 8192, 20)
    assert (config.head_timeout_s, config.connections_limit, config.dashboard) == (3, 64, False)
    assert (config.connections_per_address, config.admin_reserve, config.keep_alive_s) == (65, 4, 5)
    assert (config.send_timeout_s, config.requests_per_key, config.requests_per_s_per_key) == (9, 10, 11)
    assert (config.queue_per_key, config.bodies_limit_bytes) == (12, 64 << 20)
    assert config.bodies_per_key_bytes == 2 << 20
    assert "\nMemoryMax=8G\n" in (folder / "llama-router.service").read_text()
    assert (config.request_timeout_s, config.queue_wait_s, config.switch_drain_s) == (60, 61, 62)
    assert (config.backend_wait_s, config.suspect_s, config.canary_deadline_s) == (6, 7, 0)
    assert (config.keep_starts, config.keep_log_bytes) == (8, 1 << 20)


def test_every_variable_is_explained_in_the_roles_readme() -> None:
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    upgrade = {name for name in defaults if name.startswith(("router_hold_", "router_canary_"))}
    readme = (ROLE / "README.md").read_text()
    assert [name for name in defaults if name not in upgrade and f"`{name}`" not in readme] == []


def test_unit_neither_limits_the_page_cache_of_models_nor_prefers_the_router_to_others(
    deployed: Path,
) -> None:
    unit = (deployed / "llama-router.service").read_text()
    assert "MemoryMax=" not in unit
    assert "OOMScoreAdjust=" not in unit
    assert "\nEnvironment=MALLOC_MMAP_THRESHOLD_=262144\n" in unit


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_unit_is_scored_a_full_sandbox(deployed: Path) -> None:
    unit = deployed / "llama-router.service"
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    report = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "ignoring" not in report.stderr, report.stderr
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", report.stdout)
    assert found, report.stdout
    assert float(found[1]) <= SCORE
    promised = (HERE.parents[1] / "docs" / "security.md").read_text()
    assert f"`systemd-analyze security` {SCORE} or less" in promised.partition("| router |")[2]
