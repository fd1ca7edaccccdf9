"""The node's GPUs of all makers. A driver that hangs does not delay the sample."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.monitor.common import WARNING, log
from harness.monitor.readers import PROC, SYS
from harness.monitor.readers.amdgpu import amdgpu, amdgpu_cards
from harness.monitor.readers.nvml import NvmlGone, NvmlReader, unreachable
from harness.monitor.sample import Gpu

_RESCAN_EVERY = 60
"""Reads between two scans for GPUs that came or went, and between two tries with a library that fails."""
_HUNG_S = 5.0
_IDENTITY = {"index", "name", "uuid", "driver", "source"}

T = TypeVar("T")


def load_pynvml() -> Any:
    """The binding to NVML: loaded only where the kernel has NVIDIA's driver."""
    import pynvml

    return pynvml


class NonBlockingCall(Generic[T]):
    """Repeats a call that may hang, each time in a thread of its own, one call at a time.

    A driver whose device fell off the bus may never return from a call. The last answer then
    stays, and its age shows it.
    """

    def __init__(self, call: Callable[[], T], first: T, wait_s: float = 0.25) -> None:
        """The first call starts with the first ``latest``.

        Args:
            call: the function that may hang.
            first: the answer until there is one.
            wait_s: the longest that ``latest`` waits.
        """
        self._call = call
        self._answer = first
        self._wait_s = wait_s
        self._called_at: float | None = None
        self._thread = threading.Thread()

    def latest(self, now_s: float) -> tuple[T, float]:
        """The newest answer, and for how many seconds the current call has been without one.

        Args:
            now_s: monotonic clock, seconds.
        """
        if self._called_at is None:
            self._called_at = now_s
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._thread.join(self._wait_s)
        called_at = self._called_at  # the thread may answer now
        return self._answer, 0.0 if called_at is None else now_s - called_at

    def _run(self) -> None:
        self._answer = self._call()
        self._called_at = None


class GpuReader:
    """Every GPU of the node; without one it costs a scan of two folders a minute."""

    def __init__(
        self, proc: Path = PROC, sys: Path = SYS, load_nvml: Callable[[], Any] = load_pynvml
    ) -> None:
        self._proc, self._sys = proc, sys
        self._load_nvml = load_nvml
        self._nvml: NvmlReader | None = None
        self._nvml_problem = ""
        self._cards: list[Path] = []
        self._has_nvidia = False
        self._scans = self._reads = 0
        self._query: NonBlockingCall[list[Gpu]] = NonBlockingCall(self._read_all, [])

    def read(self, now_s: float) -> list[Gpu]:
        """Every GPU now; one whose driver does not answer keeps its name and has a ``problem``.

        Args:
            now_s: monotonic clock, seconds.
        """
        if self._scans % _RESCAN_EVERY == 0:
            self._has_nvidia = (self._proc / "driver" / "nvidia" / "version").exists()
            self._cards = amdgpu_cards(self._sys)
        self._scans += 1
        if not self._has_nvidia and not self._cards:
            return []
        gpus, waiting_s = self._query.latest(now_s)
        if waiting_s < _HUNG_S:
            return gpus
        problem = f"its driver has not answered for {waiting_s:.0f} s"
        return [Gpu(**gpu.model_dump(include=_IDENTITY), problem=problem) for gpu in gpus]

    def _read_all(self) -> list[Gpu]:
        """Runs in the thread of ``_query``."""
        gpus = [*self._nvidia(), *(amdgpu(index, card, self._sys) for index, card in enumerate(self._cards))]
        self._reads += 1
        return gpus

    def _nvidia(self) -> list[Gpu]:
        if not self._has_nvidia:
            return []
        try:
            if self._nvml is None and (not self._nvml_problem or self._reads % _RESCAN_EVERY == 0):
                self._nvml = NvmlReader(self._load_nvml(), self._proc)
                self._nvml_problem = ""
            if self._nvml is not None:
                return self._nvml.read()
        except (NvmlGone, ImportError) as error:
            self._nvml = None
            if str(error) != self._nvml_problem:
                log("nvml_unavailable", level=WARNING, error=str(error))
            self._nvml_problem = str(error)
        return unreachable(self._proc, self._nvml_problem)
