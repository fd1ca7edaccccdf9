"""GPUs as the monitor reads them: NVML through its real binding on a recorded library, amdgpu from files.

No GPU is at hand where these run; tests/data/monitor/README.md says where the figures come from.
"""

import json
import shutil
import struct
import threading
from pathlib import Path
from typing import Any

import pynvml
import pytest
from harness.monitor.readers.amdgpu import amdgpu, amdgpu_cards
from harness.monitor.readers.amdgpu import throttle_reasons as amdgpu_throttle
from harness.monitor.readers.gpu import GpuReader, NonBlockingCall
from harness.monitor.readers.nvml import NvmlGone, NvmlReader, throttle_reasons
from harness.monitor.sample import GpuSource
from tests.unit.recorded_nvml import FUNCTION_NOT_FOUND, RecordedNvml

DATA = Path(__file__).parents[3] / "data" / "monitor"
SYS = DATA / "amdgpu"
GIB = 1 << 30


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> RecordedNvml:
    """The recorded library, loaded by the real binding in the place of NVIDIA's."""
    recorded = RecordedNvml(json.loads((DATA / "nvml" / "two_gpus.json").read_text()))
    monkeypatch.setattr(pynvml, "nvmlLib", recorded)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return recorded


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with NVIDIA's driver and two boards."""
    driver = tmp_path / "proc" / "driver" / "nvidia"
    for slot, model in (("0000:65:00.0", "NVIDIA A100-PCIE-40GB"), ("0000:b3:00.0", "NVIDIA GeForce RTX")):
        (driver / "gpus" / slot).mkdir(parents=True)
        (driver / "gpus" / slot / "information").write_text(
            f"Model: \t\t {model}\nIRQ:   \t\t 170\nGPU UUID: \t GPU-{slot}\nBus Type: \t PCIe\n"
        )
    (driver / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01\n")
    return tmp_path / "proc"


def test_nvidia_gpu_gives_every_figure_in_its_unit(library: RecordedNvml) -> None:
    gpu, _ = NvmlReader(pynvml).read()
    assert (gpu.index, gpu.name, gpu.driver) == (0, "NVIDIA A100-PCIE-40GB", "550.163.01")
    assert gpu.uuid == "GPU-8f6d1c2e-0b1f-4c55-9a57-2f7a0d9e1b3c"
    assert gpu.source is GpuSource.NVML
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes) == (40 * GIB, 28 * GIB)
    assert (gpu.use_percent, gpu.temperature_c, gpu.power_w) == (97, 83, 249.87)
    assert gpu.throttle == ["sw_power_cap", "sw_thermal"]
    assert (gpu.ecc_corrected, gpu.ecc_uncorrected) == (3, 0)
    assert gpu.problem is None


def test_query_that_a_board_does_not_support_is_null_and_stops_nothing(library: RecordedNvml) -> None:
    _, gpu = NvmlReader(pynvml).read()
    assert (gpu.power_w, gpu.ecc_corrected, gpu.ecc_uncorrected) == (None, None, None)
    assert gpu.temperature_c == 41
    assert gpu.memory_used_bytes == 532676608
    assert gpu.problem is None


def test_memory_of_the_nodes_rpc_server_is_told_from_that_of_other_programs(
    library: RecordedNvml, tmp_path: Path
) -> None:
    for pid, name in ((11, "rpc-server"), (12, "ggml-rpc-server"), (13, "python3")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
    devices = library.recorded["devices"]
    devices[0]["processes"] = [[11, 5 * GIB], [12, 2 * GIB], [13, 20 * GIB], [14, GIB]]
    devices[1]["processes"] = []
    first, second = NvmlReader(pynvml, tmp_path).read()
    assert (first.memory_own_bytes, second.memory_own_bytes) == (7 * GIB, 0)
    assert first.memory_used_bytes == 28 * GIB


def test_memory_of_processes_that_the_driver_does_not_tell_is_null(
    library: RecordedNvml, tmp_path: Path
) -> None:
    (tmp_path / "11").mkdir()
    (tmp_path / "11" / "comm").write_text("rpc-server\n")
    library.recorded["devices"][0]["processes"] = [[11, (1 << 64) - 1]]  # NVML_VALUE_NOT_AVAILABLE
    assert [gpu.memory_own_bytes for gpu in NvmlReader(pynvml, tmp_path).read()] == [None, None]
    library.recorded["missing"] = ["nvmlDeviceGetComputeRunningProcesses_v3"]  # as driver 470
    pynvml._nvmlGetFunctionPointer_cache.clear()
    gpu, _ = NvmlReader(pynvml, tmp_path).read()
    assert (gpu.memory_own_bytes, gpu.temperature_c) == (None, 83)


def test_gpu_without_memory_of_its_own_is_unified(library: RecordedNvml) -> None:
    library.recorded["devices"][1]["memory_bytes"] = {"error": 3}  # as on a DGX Spark
    first, second = NvmlReader(pynvml).read()
    assert (first.unified, second.unified) == (False, True)
    assert (second.memory_total_bytes, second.problem) == (None, None)


def test_idle_clocks_are_no_throttling() -> None:
    assert throttle_reasons(0x1) == []
    assert throttle_reasons(0x8 | 0x40 | 0x80) == ["hw_slowdown", "hw_thermal", "hw_power_brake"]


def test_gpu_that_fell_off_the_bus_says_so_and_its_neighbour_goes_on(library: RecordedNvml) -> None:
    reader = NvmlReader(pynvml)
    reader.read()
    library.lost[0] = pynvml.NVML_ERROR_GPU_IS_LOST
    lost, neighbour = reader.read()
    assert lost.problem == "GPU is lost"
    assert (lost.name, lost.uuid) == ("NVIDIA A100-PCIE-40GB", "GPU-8f6d1c2e-0b1f-4c55-9a57-2f7a0d9e1b3c")
    assert (lost.memory_used_bytes, lost.temperature_c) == (None, None)
    assert neighbour.temperature_c == 41


def test_gpu_lost_between_two_queries_is_asked_no_further(library: RecordedNvml) -> None:
    reader = NvmlReader(pynvml)
    library.recorded["devices"][0]["memory_bytes"] = {"error": pynvml.NVML_ERROR_GPU_IS_LOST}
    lost, neighbour = reader.read()
    assert (lost.problem, lost.temperature_c) == ("GPU is lost", None)
    assert neighbour.problem is None


def test_ecc_is_not_asked_for_every_second(library: RecordedNvml) -> None:
    reader = NvmlReader(pynvml)
    for _ in range(10):
        assert reader.read()[0].ecc_corrected == 3
    assert library.calls.count("nvmlDeviceGetTotalEccErrors") == 4  # two kinds, two boards, once


def test_older_driver_is_asked_for_throttling_by_its_old_name(library: RecordedNvml) -> None:
    library.recorded["missing"] = ["nvmlDeviceGetCurrentClocksEventReasons"]
    assert NvmlReader(pynvml).read()[0].throttle == ["sw_power_cap", "sw_thermal"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "RM has detected an NVML/RM version mismatch."),
    ],
)
def test_library_that_cannot_be_opened_says_why(library: RecordedNvml, code: int, message: str) -> None:
    library.init_error = code
    with pytest.raises(NvmlGone, match=message):
        NvmlReader(pynvml)


def test_driver_that_is_unloaded_meanwhile_is_noticed(library: RecordedNvml) -> None:
    reader = NvmlReader(pynvml)
    library.init_error = pynvml.NVML_ERROR_UNINITIALIZED
    with pytest.raises(NvmlGone):
        reader.read()


def test_node_without_a_gpu_never_loads_the_binding(tmp_path: Path) -> None:
    def load() -> Any:
        raise AssertionError("loaded")

    threads = threading.active_count()
    reader = GpuReader(tmp_path, tmp_path, load)
    assert [reader.read(float(second)) for second in range(70)] == [[]] * 70
    assert threading.active_count() == threads


def test_gpus_of_both_makers_are_in_the_sample(library: RecordedNvml, proc: Path) -> None:
    gpus = GpuReader(proc, SYS, lambda: pynvml).read(1.0)
    assert [(gpu.source.value, gpu.index) for gpu in gpus] == [("nvml", 0), ("nvml", 1), ("amdgpu", 0)]


def test_node_whose_library_does_not_fit_its_driver_still_names_its_gpus(
    library: RecordedNvml, proc: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library.init_error = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    reader = GpuReader(proc, proc, lambda: pynvml)
    for second in range(5):
        gpus = reader.read(float(second))
    assert [gpu.name for gpu in gpus] == ["NVIDIA A100-PCIE-40GB", "NVIDIA GeForce RTX"]
    assert {gpu.problem for gpu in gpus} == {"RM has detected an NVML/RM version mismatch."}
    assert capfd.readouterr().err.count("nvml_unavailable") == 1


def test_library_is_tried_again_after_a_minute(library: RecordedNvml, proc: Path) -> None:
    library.init_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    reader = GpuReader(proc, proc, lambda: pynvml)
    assert reader.read(0.0)[0].problem == "Driver Not Loaded"
    library.init_error = 0
    for second in range(1, 62):
        gpus = reader.read(float(second))
    assert gpus[0].problem is None


def test_missing_library_is_no_error(monkeypatch: pytest.MonkeyPatch, proc: Path) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    (gpu, _) = GpuReader(proc, proc, lambda: pynvml).read(1.0)
    assert gpu.problem == "NVML Shared Library Not Found"


def test_driver_that_hangs_does_not_hold_up_the_sample(library: RecordedNvml, proc: Path) -> None:
    reader = GpuReader(proc, proc, lambda: pynvml)
    before = reader.read(0.0)
    assert before[0].temperature_c == 83
    release = threading.Event()

    def hang(_count: Any) -> int:
        release.wait(30)
        return 0

    library._nvmlDeviceGetCount_v2 = hang  # type: ignore[method-assign]
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        assert reader.read(1.0) == before  # the newest there is
        hung = reader.read(7.0)
    finally:
        release.set()
    assert [gpu.problem for gpu in hung] == ["its driver has not answered for 6 s"] * 2
    assert (hung[0].name, hung[0].temperature_c) == (before[0].name, None)


def test_call_that_hung_answers_again_once_it_comes_back() -> None:
    gate = threading.Semaphore(1)
    answers = iter(range(10))

    def call() -> int:
        gate.acquire()
        return next(answers)

    repeated = NonBlockingCall(call, -1, wait_s=0.05)
    assert repeated.latest(0.0) == (0, 0.0)
    assert repeated.latest(1.0) == (0, 0.0)  # hangs from here on
    assert repeated.latest(4.0) == (0, 3.0)
    gate.release()
    repeated._wait_s = 10
    assert repeated.latest(5.0) == (1, 0.0)


def test_amd_gpu_gives_every_figure_in_its_unit() -> None:
    (card,) = amdgpu_cards(SYS)
    gpu = amdgpu(0, card, SYS)
    assert gpu.source is GpuSource.AMDGPU
    assert (gpu.name, gpu.uuid) == ("AMD Instinct MI60", "7f3a91c2d4e5b608")
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes) == (32 * GIB, 20 * GIB)
    assert (gpu.use_percent, gpu.temperature_c, gpu.power_w) == (88, 71, 203)
    assert (gpu.ecc_corrected, gpu.ecc_uncorrected) == (2, 0)
    assert gpu.problem is None


def test_display_of_another_maker_is_no_amd_gpu(tmp_path: Path) -> None:
    sys = Path(shutil.copytree(SYS, tmp_path / "sys"))
    other = sys / "class" / "drm" / "card1" / "device"
    other.mkdir(parents=True)
    (other / "uevent").write_text("DRIVER=i915\nPCI_ID=8086:3E92\n")
    (sys / "class" / "drm" / "card0-DP-1").mkdir()
    assert len(amdgpu_cards(sys)) == 1


def test_amd_board_with_few_files_has_null_figures(tmp_path: Path) -> None:
    sys = Path(shutil.copytree(SYS, tmp_path / "sys"))
    (device,) = amdgpu_cards(sys)
    for name in ("product_name", "unique_id", "gpu_busy_percent", "gpu_metrics", "ras/umc_err_count"):
        (device / name).unlink(missing_ok=True)
    average = device / "hwmon" / "hwmon3" / "power1_average"
    average.rename(average.with_name("power1_input"))
    gpu = amdgpu(0, device, sys)
    assert (gpu.name, gpu.uuid, gpu.use_percent, gpu.ecc_corrected) == ("AMD 1002:66A1", None, None, None)
    assert gpu.power_w == 203
    assert gpu.throttle == []


@pytest.mark.parametrize(("form", "unified"), [(2, True), (3, True), (1, False)])
def test_amd_gpu_on_the_processors_die_has_what_the_kernel_lets_it_map(
    tmp_path: Path, form: int, unified: bool
) -> None:
    sys = Path(shutil.copytree(SYS, tmp_path / "sys"))
    (device,) = amdgpu_cards(sys)
    (device / "gpu_metrics").write_bytes(struct.pack("<HBB", 120, form, 1).ljust(120, b"\0"))
    (device / "mem_info_vram_total").write_text(f"{GIB // 2}\n")
    (device / "mem_info_gtt_total").write_text(f"{62 * GIB}\n")
    (device / "mem_info_gtt_used").write_text(f"{GIB}\n")
    gpu = amdgpu(0, device, sys)
    assert gpu.unified is unified
    assert gpu.memory_total_bytes == (62 * GIB if unified else GIB // 2)
    (device / "mem_info_vram_total").write_text(f"{96 * GIB}\n")  # set aside in the firmware
    gpu = amdgpu(0, device, sys)
    assert (gpu.unified, gpu.memory_total_bytes) == (False, 96 * GIB)


def test_amd_gpu_that_was_removed_says_so(tmp_path: Path) -> None:
    sys = Path(shutil.copytree(SYS, tmp_path / "sys"))
    (device,) = amdgpu_cards(sys)
    shutil.rmtree(device)
    assert amdgpu(0, device, sys).problem == "the device is gone"


def metrics(form: int, content: int, status: int, size: int = 120) -> bytes:
    """A gpu_metrics table of revision 1.3: 120 bytes, the driver's own status at 112."""
    return struct.pack("<HBB", size, form, content).ljust(112, b"\0") + struct.pack("<Q", status)


def test_amd_throttling_has_names() -> None:
    assert amdgpu_throttle(metrics(1, 3, 1 << 0 | 1 << 36 | 1 << 47)) == [
        "ppt0",
        "temp_hotspot",
        "prochot_gfx",
    ]


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"\x78",
        metrics(1, 3, (1 << 64) - 1),  # the board has no such figure
        metrics(1, 1, 1),  # a revision without the field
        metrics(1, 3, 1)[:115],  # cut
        metrics(1, 3, 1, size=96),
    ],
)
def test_amd_metrics_without_a_status_are_no_throttling(table: bytes) -> None:
    assert amdgpu_throttle(table) == []


def test_unknown_function_is_its_own_error(library: RecordedNvml) -> None:
    library.recorded["missing"] = ["nvmlDeviceGetPowerUsage"]
    assert NvmlReader(pynvml).read()[0].power_w is None
    assert FUNCTION_NOT_FOUND == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
