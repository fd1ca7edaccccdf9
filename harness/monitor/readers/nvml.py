"""NVIDIA GPUs, read through NVIDIA's management library (NVML; units as in its nvml.h).

The binding is an argument, so that a node without such a GPU never loads it. A query that a board or a driver
does not support leaves its field null; a GPU that is gone has a ``problem``, and the others are still read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.monitor.readers import PROC, read_text
from harness.monitor.sample import RPC_SERVERS, Gpu, GpuSource

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


class NvmlReader:
    """Every GPU of the library, kept open between reads."""

    def __init__(self, binding: Any, proc: Path = PROC) -> None:
        """Open the library.

        Args:
            binding: the module ``pynvml`` of nvidia-ml-py.
            proc: where /proc is.

        Raises:
            NvmlGone: there is no library, no driver, or they do not fit together; says which.
        """
        self._nvml = binding
        self._proc = proc
        self._boards: dict[int, tuple[str, str | None]] = {}
        """Name and UUID by number."""
        self._ecc: dict[int, tuple[int | None, int | None]] = {}
        self._reads = 0
        self._gone_codes = (
            binding.NVML_ERROR_UNINITIALIZED,
            binding.NVML_ERROR_DRIVER_NOT_LOADED,
            binding.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        )
        self._lost_codes = (binding.NVML_ERROR_GPU_IS_LOST, binding.NVML_ERROR_RESET_REQUIRED)
        try:
            binding.nvmlInit()
            self._driver: str | None = self._query(binding.nvmlSystemGetDriverVersion)
        except binding.NVMLError as error:
            raise NvmlGone(str(error)) from None

    def read(self) -> list[Gpu]:
        """Every GPU now, by number.

        Raises:
            NvmlGone: the library has to be opened again.
        """
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            raise NvmlGone(str(error)) from None
        with_ecc = self._reads % _ECC_EVERY == 0
        self._reads += 1
        return [self._gpu(index, with_ecc) for index in range(count)]

    def _gpu(self, index: int, with_ecc: bool) -> Gpu:
        figures: dict[str, Any]
        try:
            figures = self._figures(index, self._nvml.nvmlDeviceGetHandleByIndex(index), with_ecc)
        except self._nvml.NVMLError as error:
            if error.value in self._gone_codes:
                raise NvmlGone(str(error)) from None
            figures = {"problem": str(error)}
        name, uuid = self._boards.get(index, ("unknown", None))
        return Gpu(index=index, name=name, uuid=uuid, driver=self._driver, source=GpuSource.NVML, **figures)

    def _figures(self, index: int, handle: Any, with_ecc: bool) -> dict[str, Any]:
        nvml, query = self._nvml, self._query
        if index not in self._boards:
            name = query(nvml.nvmlDeviceGetName, handle) or "unknown"
            self._boards[index] = (name, query(nvml.nvmlDeviceGetUUID, handle))
        if with_ecc:
            corrected, uncorrected = (
                query(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, nvml.NVML_VOLATILE_ECC)
                for kind in (nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
            )
            self._ecc[index] = (corrected, uncorrected)
        corrected, uncorrected = self._ecc.get(index, (None, None))
        memory = query(nvml.nvmlDeviceGetMemoryInfo, handle)
        use = query(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = query(nvml.nvmlDeviceGetPowerUsage, handle)
        reasons = query(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if reasons is None:  # renamed with driver 535; an older one knows the old name only
            reasons = query(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return {
            "memory_total_bytes": None if memory is None else memory.total,
            "memory_used_bytes": None if memory is None else memory.used,
            "memory_own_bytes": self._own_bytes(handle),
            # On a DGX Spark the library says "not supported": the GPU has no memory of its own.
            "unified": memory is None,
            "use_percent": None if use is None else use.gpu,
            "temperature_c": query(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": None if milliwatts is None else milliwatts / 1000,
            "throttle": throttle_reasons(reasons or 0),
            "ecc_corrected": corrected,
            "ecc_uncorrected": uncorrected,
        }

    def _own_bytes(self, handle: Any) -> int | None:
        """Memory that the node's rpc-server holds; None where the library does not say."""
        processes = self._query(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if processes is None:
            return None
        ours = [process.usedGpuMemory for process in processes if self._is_rpc_server(process.pid)]
        return None if None in ours else sum(ours)

    def _is_rpc_server(self, pid: int) -> bool:
        return (read_text(self._proc / str(pid) / "comm") or "").strip() in RPC_SERVERS

    def _query(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The answer; None where this board or driver has none to give.

        Raises:
            NVMLError: the whole GPU is out of reach, and each further query would fail the same way.
        """
        try:
            return function(*arguments)
        except (
            self._nvml.NVMLLibraryMismatchError
        ):  # the binding's name for a query that an older driver lacks
            return None
        except self._nvml.NVMLError as error:
            if error.value in (*self._lost_codes, *self._gone_codes):
                raise
            return None


def throttle_reasons(bits: int) -> list[str]:
    """Names of the bits of ``nvmlDeviceGetCurrentClocksEventReasons``, lowest first."""
    return [reason for bit, reason in _THROTTLE.items() if bits & bit]


def unreachable(proc: Path, problem: str) -> list[Gpu]:
    """The NVIDIA GPUs that the kernel's driver lists, where the library cannot be used.

    Args:
        proc: where /proc is; the driver keeps a folder there for each board.
        problem: why the library cannot be used.
    """
    gpus = []
    for index, folder in enumerate(sorted((proc / "driver" / "nvidia" / "gpus").glob("*"))):
        lines = (line.partition(":") for line in (read_text(folder / "information") or "").splitlines())
        values = {key.strip(): value.strip() for key, _, value in lines if value.strip()}
        name, uuid = values.get("Model", "unknown"), values.get("GPU UUID")
        gpus.append(Gpu(index=index, name=name, uuid=uuid, source=GpuSource.NVML, problem=problem))
    return gpus
