"""AMD GPUs from the files that the kernel's driver keeps in /sys (its documentation: gpu/amdgpu/).

Every file is optional: which there are depends on the board, the kernel and the moment (a board that sleeps
answers with an error). A figure that cannot be read is null.
"""

import struct
from pathlib import Path

from harness.monitor.readers import SYS, read_text
from harness.monitor.readers.memory import pairs
from harness.monitor.sample import Gpu, GpuSource

_THROTTLE = {
    0: "ppt0", 1: "ppt1", 2: "ppt2", 3: "ppt3", 4: "spl", 5: "fppt", 6: "sppt", 7: "sppt_apu",
    16: "tdc_gfx", 17: "tdc_soc", 18: "tdc_mem", 19: "tdc_vdd", 20: "tdc_cvip", 21: "edc_cpu", 22: "edc_gfx",
    23: "apcc",
    32: "temp_gpu", 33: "temp_core", 34: "temp_mem", 35: "temp_edge", 36: "temp_hotspot", 37: "temp_soc",
    38: "temp_vr_gfx", 39: "temp_vr_soc", 40: "temp_vr_mem0", 41: "temp_vr_mem1", 42: "temp_liquid0",
    43: "temp_liquid1", 44: "vrhot0", 45: "vrhot1", 46: "prochot_cpu", 47: "prochot_gfx",
    56: "ppm", 57: "fit",
}  # fmt: skip
"""``SMU_THROTTLER_*_BIT`` of the driver's amdgpu_smu.h: power, current, temperature, others."""
_APU_FORMATS = (2, 3)
"""Formats of gpu_metrics that the driver gives for a GPU on the processor's die."""
_UNKNOWN = (1 << 64) - 1
"""What the driver fills in where a board has no such figure."""
_HEADER = struct.Struct("<HBB")
_INDEPENDENT_STATUS = {(1, 3): 112}
"""Where ``indep_throttle_status`` (64 bits) is in gpu_metrics, by format and content revision."""


def amdgpu_cards(sys: Path = SYS) -> list[Path]:
    """Folders of the devices that the driver amdgpu runs, in the order of their cards."""
    cards = (path for path in (sys / "class" / "drm").glob("card*") if path.name[4:].isdigit())
    devices = [card / "device" for card in sorted(cards, key=lambda card: int(card.name[4:]))]
    return [device for device in devices if _uevent(device).get("DRIVER") == "amdgpu"]


def amdgpu(index: int, device: Path, sys: Path = SYS) -> Gpu:
    """One GPU now.

    Args:
        index: its place among the node's AMD GPUs.
        device: its folder, from ``amdgpu_cards``.
        sys: where /sys is.
    """
    hwmon = next(iter(sorted((device / "hwmon").glob("hwmon*"))), device / "hwmon")
    microwatts = _number(hwmon / "power1_average")
    if microwatts is None:  # boards from RDNA3 on, and APUs, give the moment instead of the average
        microwatts = _number(hwmon / "power1_input")
    millidegrees = _number(hwmon / "temp1_input")
    corrected, uncorrected = _ecc(device / "ras" / "umc_err_count")
    metrics = _bytes(device / "gpu_metrics")
    unified, total, used = _memory(device, metrics)
    return Gpu(
        index=index,
        name=_text(device / "product_name") or f"AMD {_uevent(device).get('PCI_ID', 'GPU')}",
        uuid=_text(device / "unique_id"),
        driver=_text(sys / "module" / "amdgpu" / "version"),  # only the driver of AMD's own packages has one
        source=GpuSource.AMDGPU,
        problem=None if (device / "uevent").exists() else "the device is gone",
        memory_total_bytes=total,
        memory_used_bytes=used,
        unified=unified,
        use_percent=_number(device / "gpu_busy_percent"),
        temperature_c=None if millidegrees is None else millidegrees / 1000,
        power_w=None if microwatts is None else microwatts / 1e6,
        throttle=throttle_reasons(metrics),
        ecc_corrected=corrected,
        ecc_uncorrected=uncorrected,
    )


def _memory(device: Path, metrics: bytes) -> tuple[bool, int | None, int | None]:
    """Whether it computes in the node's memory, and the bytes that it may take and has taken.

    A GPU on the processor's die has a small part of the node's memory set aside (VRAM), and the kernel lets
    it map more (GTT, ``ttm.pages_limit``). Every board has a GTT; only such a GPU keeps a model there.
    """
    vram, gtt = _number(device / "mem_info_vram_total"), _number(device / "mem_info_gtt_total")
    apu = len(metrics) >= _HEADER.size and _HEADER.unpack_from(metrics)[1] in _APU_FORMATS
    if apu and gtt is not None and gtt > (vram or 0):
        return True, gtt, _number(device / "mem_info_gtt_used")
    return False, vram, _number(device / "mem_info_vram_used")


def throttle_reasons(metrics: bytes) -> list[str]:
    """Names of the bits of ``indep_throttle_status``; none where this revision has no such field.

    Args:
        metrics: the file gpu_metrics: a header (size, format and content revision), then the table.
    """
    if len(metrics) < _HEADER.size:
        return []
    size, form, content = _HEADER.unpack_from(metrics)
    offset = _INDEPENDENT_STATUS.get((form, content))
    if offset is None or len(metrics) < size or size < offset + 8:
        return []
    (status,) = struct.unpack_from("<Q", metrics, offset)
    return [] if status == _UNKNOWN else [reason for bit, reason in _THROTTLE.items() if status >> bit & 1]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _ecc(path: Path) -> tuple[int | None, int | None]:
    """Corrected and uncorrected errors of the memory controller, from lines ``ue: 0`` and ``ce: 0``."""
    counts = pairs(_text(path) or "")
    return counts.get("ce"), counts.get("ue")


def _uevent(device: Path) -> dict[str, str]:
    lines = (_text(device / "uevent") or "").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _number(path: Path) -> int | None:
    text = _text(path) or ""
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str | None:
    return (read_text(path) or "").strip() or None
