"""What the role rpc_server offers on hosts with accelerators: Ansible runs its preflight and writes its unit.

A script stands in for rpc-server and lists devices as build 11549 does: when asked for an unknown one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.settings import REPOSITORY

LISTING = {
    "gpus": "  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23706 MiB free)\n"
    "  CUDA1: NVIDIA GeForce RTX 3090 (24126 MiB, 23870 MiB free)\n",
    "strix": "  ROCm0: AMD Radeon Graphics (63968 MiB, 63000 MiB free)\n",
    "none": "",
}
CPU = "  CPU: AMD Ryzen 9 7950X 16-Core Processor (31986 MiB, 31986 MiB free)\n"
SERVER = """#!/bin/sh
case "$1" in
--help) echo "  -t, --threads N  -d, --device <dev1,dev2,...>  -c, --cache" >&2 ;;
--device) [ -z "$HIP_VISIBLE_DEVICES" ] && [ "$2" = none ] && printf '%s' '{devices}'
          echo "No devices found" >&2; exit 1 ;;
esac
"""
HOSTS: dict[str, dict[str, Any]] = {
    "cpu": {"finds": "none"},
    "two_cards": {"finds": "gpus", "rpc_server_accelerator": "cuda"},
    "card_and_memory": {
        "finds": "gpus",
        "rpc_server_accelerator": "cuda",
        "rpc_server_devices": ["CUDA0", "CPU"],
    },
    "fallback": {"finds": "none", "rpc_server_accelerator": "cuda"},
    "one_missing": {
        "finds": "gpus",
        "rpc_server_accelerator": "cuda",
        "rpc_server_devices": ["CUDA0", "CUDA2"],
    },
    "strix": {
        "finds": "strix",
        "rpc_server_accelerator": "rocm",
        "rpc_server_environment": {"HSA_OVERRIDE_GFX_VERSION": "11.5.1", "GGML_CUDA_NO_PINNED": 1},
    },
    "hidden": {
        "finds": "strix",
        "rpc_server_accelerator": "rocm",
        "rpc_server_environment": {"HIP_VISIBLE_DEVICES": "-1"},
    },
    "preload": {"finds": "none", "rpc_server_environment": {"LD_PRELOAD": "/tmp/x.so"}},
    "cache": {"finds": "none", "rpc_server_environment": {"LLAMA_CACHE": "/tmp"}},
    "newline": {"finds": "none", "rpc_server_environment": {"GGML_X": "1\n"}},
}
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - block:
        - ansible.builtin.include_role:
            name: rpc_server
            tasks_from: preflight
            public: true
        - ansible.builtin.template:
            src: "{{ role }}/templates/llama-rpc-server.service.j2"
            dest: "{{ folder }}/{{ inventory_hostname }}.service"
          vars:
            ansible_managed: managed
      rescue:
        - ansible.builtin.copy:
            content: "{{ ansible_failed_result.msg }}"
            dest: "{{ folder }}/{{ inventory_hostname }}.refused"
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unit of each host, or the reason why it was refused."""
    folder = tmp_path_factory.mktemp("units")
    hosts: dict[str, Any] = {}
    for name, given in HOSTS.items():
        binary = folder / f"{name}-server"
        binary.write_text(SERVER.format(devices=LISTING[given["finds"]] + CPU))
        binary.chmod(0o755)
        hosts[name] = {"rpc_server_binary": str(binary), "rpc_server_packages": [], **given}
    common = {
        "ansible_connection": "local",
        "ansible_host": "127.0.0.1",
        "ansible_python_interpreter": sys.executable,
        "rpc_server_port": 59998,
        "rpc_server_admitted": ["127.0.0.1"],
        "role": str(REPOSITORY / "roles" / "rpc_server"),
        "folder": str(folder),
    }
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}))
    (folder / "play.yml").write_text(PLAY)
    program = Path(sys.executable).parent / "ansible-playbook"
    command = [str(program), "-i", str(folder / "hosts.json"), str(folder / "play.yml")]
    (folder / "bin").mkdir()
    systemctl = folder / "bin" / "systemctl"  # of a host on which the unit does not run yet
    systemctl.write_text("#!/bin/sh\necho MainPID=0\n")
    systemctl.chmod(0o755)
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


def unit(outcome: Path, host: str) -> str:
    return (outcome / f"{host}.service").read_text()


def refusal(outcome: Path, host: str) -> str:
    assert not (outcome / f"{host}.service").exists()
    return (outcome / f"{host}.refused").read_text()


def offered(text: str) -> str | None:
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    words = line.split()
    return words[words.index("--device") + 1] if "--device" in words else None


def test_cpu_host_is_told_no_device_and_may_open_none(outcome: Path) -> None:
    text = unit(outcome, "cpu")
    assert offered(text) is None
    assert "DeviceAllow" not in text
    assert "llama-gpu-devices" not in text


def test_gpu_host_offers_every_card_and_not_its_cpu(outcome: Path) -> None:
    assert offered(unit(outcome, "two_cards")) == "CUDA0,CUDA1"


def test_inventory_may_lend_a_card_and_the_hosts_memory(outcome: Path) -> None:
    assert offered(unit(outcome, "card_and_memory")) == "CUDA0,CPU"


def test_host_that_would_serve_from_its_cpu_is_refused(outcome: Path) -> None:
    reason = refusal(outcome, "fallback")
    assert "fallback: rpc-server is to offer the devices of kind cuda, and finds CPU" in reason


def test_device_that_is_missing_is_named(outcome: Path) -> None:
    reason = refusal(outcome, "one_missing")
    assert "is to offer CUDA0, CUDA2, and finds CUDA0, CUDA1, CPU" in reason


def test_unit_allows_the_devices_of_old_and_new_drivers(outcome: Path) -> None:
    text = unit(outcome, "two_cards")
    for name in ("nvidia-frontend", "nvidia", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        assert f"DeviceAllow=char-{name} rw\n" in text
    assert "After=llama-gpu-devices.service nvidia-persistenced.service\n" in text
    assert 'Environment="CUDA_DEVICE_ORDER=PCI_BUS_ID"\n' in text
    assert "nvidia-modprobe" not in text


def test_variables_of_the_runtime_are_passed_and_count_when_devices_are_listed(outcome: Path) -> None:
    text = unit(outcome, "strix")
    assert offered(text) == "ROCm0"
    assert 'Environment="HSA_OVERRIDE_GFX_VERSION=11.5.1"\n' in text
    assert 'Environment="GGML_CUDA_NO_PINNED=1"\n' in text
    assert "finds none" in refusal(outcome, "hidden")


@pytest.mark.parametrize("host", ["preload", "cache", "newline"])
def test_other_variables_are_refused(outcome: Path, host: str) -> None:
    assert "rpc_server_environment takes variables of an accelerator's runtime" in refusal(outcome, host)
