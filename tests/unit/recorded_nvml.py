"""A double of NVIDIA's driver library: answers the real binding (``pynvml``) from recorded figures.

It stands where ``libnvidia-ml.so.1`` would be loaded and fills in the binding's own C structures, so that
everything above the library is the real thing.
"""

import ctypes
from collections.abc import Callable
from typing import Any

SUCCESS = 0
NOT_SUPPORTED = 3
INSUFFICIENT_SIZE = 7
FUNCTION_NOT_FOUND = 13


class RecordedNvml:
    """The library. A figure that is ``{"error": N}`` makes its query return that error."""

    def __init__(self, recorded: dict[str, Any]) -> None:
        self.recorded = recorded
        self.calls: list[str] = []
        self.lost: dict[int, int] = {}
        """Error that every query about a board returns, by its number."""
        self.init_error = SUCCESS

    def __getattr__(self, name: str) -> Callable[..., int]:
        answer = getattr(self, f"_{name}", None) if not name.startswith("_") else None
        if answer is None or name in self.recorded.get("missing", ()):
            raise AttributeError(name)  # as ctypes does for a symbol that the library lacks

        def function(*arguments: Any) -> int:
            self.calls.append(name)
            status: int = answer(*arguments)
            return status

        return function

    def _nvmlInitWithFlags(self, _flags: Any) -> int:
        return self.init_error

    def _nvmlInit_v2(self) -> int:
        return self.init_error

    def _nvmlSystemGetDriverVersion(self, buffer: Any, _length: Any) -> int:
        buffer.value = self.recorded["driver"].encode()
        return self.init_error

    def _nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.recorded["devices"])
        return self.init_error

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        if index.value in self.lost:
            return self.lost[index.value]
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = index.value + 1
        return SUCCESS

    def _figure(self, handle: Any, name: str) -> tuple[int, Any]:
        index = ctypes.cast(handle, ctypes.c_void_p).value - 1  # type: ignore[operator]
        if index in self.lost:
            return self.lost[index], None
        value = self.recorded["devices"][index].get(name, {"error": NOT_SUPPORTED})
        return (value["error"], None) if isinstance(value, dict) and "error" in value else (SUCCESS, value)

    def _text(self, handle: Any, buffer: Any, name: str) -> int:
        status, value = self._figure(handle, name)
        if status == SUCCESS:
            buffer.value = value.encode()
        return status

    def _value(self, handle: Any, target: Any, name: str) -> int:
        status, value = self._figure(handle, name)
        if status == SUCCESS:
            target._obj.value = value
        return status

    def _fields(self, handle: Any, target: Any, name: str) -> int:
        status, values = self._figure(handle, name)
        for field, value in (values or {}).items():
            setattr(target._obj, field, value)
        return status

    def _nvmlDeviceGetName(self, handle: Any, buffer: Any, _length: Any) -> int:
        return self._text(handle, buffer, "name")

    def _nvmlDeviceGetUUID(self, handle: Any, buffer: Any, _length: Any) -> int:
        return self._text(handle, buffer, "uuid")

    def _nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        return self._fields(handle, memory, "memory_bytes")

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, listed: Any) -> int:
        status, processes = self._figure(handle, "processes")
        if status != SUCCESS:
            return status
        room, count._obj.value = count._obj.value, len(processes)
        if room < len(processes):
            return INSUFFICIENT_SIZE
        for place, (pid, used) in zip(listed or (), processes, strict=False):
            place.pid, place.usedGpuMemory = pid, used
        return SUCCESS

    def _nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        return self._fields(handle, rates, "utilization_percent")

    def _nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, target: Any) -> int:
        assert sensor.value == 0, "NVML_TEMPERATURE_GPU"
        return self._value(handle, target, "temperature_c")

    def _nvmlDeviceGetPowerUsage(self, handle: Any, target: Any) -> int:
        return self._value(handle, target, "power_mw")

    def _nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any, target: Any) -> int:
        return self._value(handle, target, "clocks_event_reasons")

    def _nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any, target: Any) -> int:
        return self._value(handle, target, "clocks_event_reasons")

    def _nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: Any, counter: Any, target: Any) -> int:
        assert counter.value == 0, "NVML_VOLATILE_ECC"
        return self._value(handle, target, ("ecc_corrected", "ecc_uncorrected")[kind.value])
