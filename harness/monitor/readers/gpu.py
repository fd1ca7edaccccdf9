"""The node's GPUs, whoever made them, without letting a driver hold up the sample."""

import sys as system
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.monitor.readers.amdgpu import amdgpu, amdgpu_cards
from harness.monitor.readers.background import Background
from harness.monitor.readers.disk import SYS
from harness.monitor.readers.memory import PROC
from harness.monitor.readers.nvml import NvmlGone, NvmlReader, unreachable
from harness.monitor.sample import Gpu

_LOOK_EVERY = 60
"""Reads between two looks for GPUs that came or went, and between two tries with a library that fails."""
_HUNG_S = 5.0
_IDENTITY = {"index", "name", "uuid", "driver", "source"}


def load_pynvml() -> Any:
    """The binding to NVML: loaded only where the kernel has NVIDIA's driver."""
    import pynvml

    return pynvml


class GpuReader:
    """Every GPU of the node; costs a look into two folders a minute where there is none."""

    def __init__(
        self, proc: Path = PROC, sys: Path = SYS, load_nvml: Callable[[], Any] = load_pynvml
    ) -> None:
        self._proc, self._sys = proc, sys
        self._load_nvml = load_nvml
        self._nvml: NvmlReader | None = None
        self._nvml_problem = ""
        self._cards: list[Path] = []
        self._has_nvidia = False
        self._looks = self._reads = 0
        self._background: Background[list[Gpu]] = Background(self._ask, [])

    def read(self, now_s: float) -> list[Gpu]:
        """Every GPU now; one whose driver does not answer keeps its name and says so.

        Args:
            now_s: monotonic clock, seconds.
        """
        if self._looks % _LOOK_EVERY == 0:
            self._has_nvidia = (self._proc / "driver" / "nvidia" / "version").exists()
            self._cards = amdgpu_cards(self._sys)
        self._looks += 1
        if not self._has_nvidia and not self._cards:
            return []
        gpus, waiting_s = self._background.latest(now_s)
        if waiting_s < _HUNG_S:
            return gpus
        problem = f"its driver has not answered for {waiting_s:.0f} s"
        return [Gpu(**gpu.model_dump(include=_IDENTITY), problem=problem) for gpu in gpus]

    def _ask(self) -> list[Gpu]:
        """Runs in the background."""
        found = [*self._nvidia(), *(amdgpu(index, card, self._sys) for index, card in enumerate(self._cards))]
        self._reads += 1
        return found

    def _nvidia(self) -> list[Gpu]:
        if not self._has_nvidia:
            return []
        try:
            if self._nvml is None and (not self._nvml_problem or self._reads % _LOOK_EVERY == 0):
                self._nvml = NvmlReader(self._load_nvml())
                self._nvml_problem = ""
            if self._nvml is not None:
                return self._nvml.read()
        except (NvmlGone, ImportError) as error:
            self._nvml = None
            if str(error) != self._nvml_problem:
                print(f"GPUs cannot be asked: {error}", file=system.stderr, flush=True)
            self._nvml_problem = str(error)
        return unreachable(self._proc, self._nvml_problem)
