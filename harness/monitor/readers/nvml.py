"""NVIDIA GPUs, asked through NVIDIA's management library (NVML; units as in its nvml.h).

The binding is handed in, so that a node without such a GPU never loads it. A query that a board or a driver
does not know leaves its field null; a GPU that is gone is said to be gone, and its neighbours go on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.monitor.sample import Gpu, GpuSource

_ECC_EVERY = 10
"""Reads between two looks at the ECC counters: the slowest query, of what changes least."""
_THROTTLE = {
    0x002: "applications_clocks",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal",
    0x040: "hw_thermal",
    0x080: "hw_power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}
"""``nvmlClocksEventReason*``; the bit for an idle GPU (0x001) is no reason to look."""


class NvmlGone(Exception):
    """The library cannot be used any more (driver unloaded or replaced): begin again."""


@dataclass(frozen=True)
class _Board:
    name: str
    uuid: str | None


class NvmlReader:
    """Every GPU of the library, kept open between reads."""

    def __init__(self, binding: Any) -> None:
        """Open the library.

        Args:
            binding: the module ``pynvml`` of nvidia-ml-py.

        Raises:
            NvmlGone: there is no library, no driver, or they do not fit together; says which.
        """
        self._nvml = binding
        self._boards: dict[int, _Board] = {}
        self._ecc: dict[int, tuple[int | None, int | None]] = {}
        self._reads = 0
        self._driver = self._or_gone(self._open)

    def _open(self) -> str | None:
        self._nvml.nvmlInit()
        driver: str | None = self._ask(self._nvml.nvmlSystemGetDriverVersion)
        return driver

    def read(self) -> list[Gpu]:
        """Every GPU now, by number.

        Raises:
            NvmlGone: the library has to be opened again.
        """
        count = self._or_gone(self._nvml.nvmlDeviceGetCount)
        look_at_ecc = self._reads % _ECC_EVERY == 0
        self._reads += 1
        return [self._gpu(index, look_at_ecc) for index in range(count)]

    def _gpu(self, index: int, look_at_ecc: bool) -> Gpu:
        try:
            return self._figures(index, self._nvml.nvmlDeviceGetHandleByIndex(index), look_at_ecc)
        except self._nvml.NVMLError as error:
            self._raise_if_gone(error)
            board = self._boards.get(index, _Board("unknown", None))
            return Gpu(
                index=index,
                name=board.name,
                uuid=board.uuid,
                driver=self._driver,
                source=GpuSource.NVML,
                problem=str(error),
            )

    def _figures(self, index: int, handle: Any, look_at_ecc: bool) -> Gpu:
        nvml, ask = self._nvml, self._ask
        if index not in self._boards:
            name = ask(nvml.nvmlDeviceGetName, handle) or "unknown"
            self._boards[index] = _Board(name, ask(nvml.nvmlDeviceGetUUID, handle))
        if look_at_ecc:
            self._ecc[index] = (
                ask(nvml.nvmlDeviceGetTotalEccErrors, handle, *self._ecc_kind("CORRECTED")),
                ask(nvml.nvmlDeviceGetTotalEccErrors, handle, *self._ecc_kind("UNCORRECTED")),
            )
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        use = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = ask(nvml.nvmlDeviceGetPowerUsage, handle)
        corrected, uncorrected = self._ecc.get(index, (None, None))
        return Gpu(
            index=index,
            name=self._boards[index].name,
            uuid=self._boards[index].uuid,
            driver=self._driver,
            source=GpuSource.NVML,
            memory_total_bytes=None if memory is None else memory.total,
            memory_used_bytes=None if memory is None else memory.used,
            use_percent=None if use is None else use.gpu,
            temperature_c=ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            throttle=throttle_words(self._throttle(handle) or 0),
            ecc_corrected=corrected,
            ecc_uncorrected=uncorrected,
        )

    def _throttle(self, handle: Any) -> int | None:
        # renamed with driver 535; an older one knows the old name only
        found: int | None = self._ask(self._nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if found is None:
            found = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return found

    def _ecc_kind(self, kind: str) -> tuple[int, int]:
        return getattr(self._nvml, f"NVML_MEMORY_ERROR_TYPE_{kind}"), self._nvml.NVML_VOLATILE_ECC

    def _ask(self, query: Callable[..., Any], *arguments: Any) -> Any:
        """The answer; None where this board or driver has none to give.

        Raises:
            NVMLError: the whole GPU is out of reach, and each further query would say the same.
        """
        nvml = self._nvml
        try:
            return query(*arguments)
        except nvml.NVMLError as error:
            lost = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)
            if error.value in lost or error.value in self._gone_codes():
                raise
            return None

    def _or_gone(self, query: Callable[[], Any]) -> Any:
        try:
            return query()
        except self._nvml.NVMLError as error:
            raise NvmlGone(str(error)) from None

    def _raise_if_gone(self, error: Any) -> None:
        if error.value in self._gone_codes():
            raise NvmlGone(str(error)) from None

    def _gone_codes(self) -> tuple[int, ...]:
        nvml = self._nvml
        return (
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        )


def throttle_words(reasons: int) -> list[str]:
    """Names of the bits of ``nvmlDeviceGetCurrentClocksEventReasons``, lowest first."""
    return [word for bit, word in _THROTTLE.items() if reasons & bit]


def unreachable(proc: Path, problem: str) -> list[Gpu]:
    """The NVIDIA GPUs that the kernel's driver lists, where the library cannot be used.

    Args:
        proc: where /proc is; the driver keeps a folder there for each board.
        problem: why the library cannot be used.
    """
    found = []
    for index, folder in enumerate(sorted((proc / "driver" / "nvidia" / "gpus").glob("*"))):
        values = _information(folder / "information")
        found.append(
            Gpu(
                index=index,
                name=values.get("Model", "unknown"),
                uuid=values.get("GPU UUID"),
                source=GpuSource.NVML,
                problem=problem,
            )
        )
    return found


def _information(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
