"""Nodes of NVIDIA's devices, from recorded /proc/devices (tests/data/gpu/README.md)."""

import importlib.util
import os
import stat
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[3] / "roles" / "gpu_devices" / "files" / "gpu_devices.py"
DATA = Path(__file__).parents[2] / "data" / "gpu"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program; a node that it makes is a file with its numbers, because a test may make no devices."""
    spec = importlib.util.spec_from_file_location("gpu_devices", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def mknod(path: Path, mode: int, device: int) -> None:
        assert mode == stat.S_IFCHR
        path.write_text(f"{os.major(device)}:{os.minor(device)}")

    monkeypatch.setattr(module.os, "mknod", mknod)
    monkeypatch.setattr(module.os, "chown", lambda *_: None)
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: None)
    return module


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of a host with two cards."""
    folder = tmp_path / "proc"
    for slot, minor in (("0000:01:00.0", 0), ("0000:02:00.0", 1)):
        board = folder / "driver/nvidia/gpus" / slot
        board.mkdir(parents=True)
        board.joinpath("information").write_text(
            f"Model: \t\t NVIDIA GeForce RTX 4090\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n"
        )
    (folder / "driver/nvidia/params").write_text("DeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n")
    return folder


@pytest.mark.parametrize(("branch", "uvm"), [("535", 510), ("580", 511)])
def test_every_card_has_a_node_on_old_and_new_drivers(
    tool: ModuleType, proc: Path, tmp_path: Path, branch: str, uvm: int
) -> None:
    (proc / "devices").write_text((DATA / branch / "devices.txt").read_text())
    assert tool.main(["nvidia"], proc, tmp_path) == 0
    nodes = {path.name: path.read_text() for path in tmp_path.glob("nvidia*")}
    assert nodes == {
        "nvidiactl": "195:255",
        "nvidia0": "195:0",
        "nvidia1": "195:1",
        "nvidia-uvm": f"{uvm}:0",
        "nvidia-uvm-tools": f"{uvm}:1",
    }
    assert stat.S_IMODE((tmp_path / "nvidia0").stat().st_mode) == 0o660


def test_node_of_these_numbers_is_kept_and_one_of_another_major_is_made_again(
    tool: ModuleType, tmp_path: Path
) -> None:
    null = Path("/dev/null").stat().st_rdev
    assert tool.is_node(Path("/dev/null"), (os.major(null), os.minor(null)))
    assert not tool.is_node(Path("/dev/null"), (os.major(null) + 1, os.minor(null)))
    assert not tool.is_node(tmp_path, (os.major(null), os.minor(null)))
    assert not tool.is_node(tmp_path / "none", (1, 3))


def test_host_without_the_driver_fails_with_one_line(
    tool: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "devices").write_text("Character devices:\n226 drm\n\nBlock devices:\n195 nvidia\n")
    assert tool.main(["nvidia", "nvidia_uvm"], tmp_path, tmp_path) == 1
    assert capfd.readouterr().err == "the kernel did not load nvidia, nvidia_uvm: see its log\n"
