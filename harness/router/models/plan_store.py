"""What the router has learned and keeps over restarts: buffers, speeds, and the splits that were used."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.contracts.plan import Plan
from harness.llama.gguf import GgufModel
from harness.planner.calibration import Calibration
from harness.planner.device_capacity import BackendMemory
from harness.planner.learned import Learned
from harness.router.logs import log

_FILE = "planning.json"
_KEPT_PLANS = 64
_CLEARLY_FASTER = 0.97


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    learned: Learned = {}
    calibration: Calibration = Calibration()
    plans: dict[str, Plan] = {}


class Knowledge:
    """One file of the router's own.

    Args:
        folder: where it is; None keeps everything in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / _FILE if folder else None
        self._content = _read(self._path)

    @property
    def learned(self) -> Learned:
        """Compute buffers of earlier loads."""
        return self._content.learned

    @property
    def calibration(self) -> Calibration:
        """Speeds of the nodes."""
        return self._content.calibration

    def calibrate(self, calibration: Calibration) -> None:
        """Keep other speeds."""
        self._content.calibration = calibration
        self._write()

    def forget_speeds(self) -> None:
        """Know no speeds, and keep no split that was made by them."""
        self._content.calibration = Calibration()
        plans = self._content.plans.items()
        self._content.plans = {key: plan for key, plan in plans if plan.token_s is None}
        self._write()

    def remember(self, key: str | None, plan: Plan, learned: Learned) -> None:
        """Keep what the log of a load that came up taught, and its split where ``key`` names it."""
        if key is not None:
            plans = {name: kept for name, kept in self._content.plans.items() if name != key}
            self._content.plans = dict([*plans.items(), (key, plan)][-_KEPT_PLANS:])
        self._content.learned = learned
        self._write()

    def settled(self, key: str, fresh: Plan, devices: Sequence[BackendMemory]) -> Plan:
        """The split that this model had before, if it still fits and the fresh one is not clearly faster.

        A split that follows every megabyte would change from load to load, and each change misses the tensor
        caches of the nodes whose layers moved.
        """
        earlier = self._content.plans.get(key)
        if earlier is None or not _fits(earlier, devices):
            return fresh
        if fresh.token_s is not None and (
            earlier.token_s is None or fresh.token_s < _CLEARLY_FASTER * earlier.token_s
        ):
            return fresh
        available = {(d.endpoint, d.device): d.available_bytes for d in devices}
        shares = [
            share.model_copy(update={"available_bytes": available[share.endpoint, share.device]})
            for share in earlier.shares
        ]
        return earlier.model_copy(update={"shares": shares})

    def _write(self) -> None:
        if self._path is None:
            return
        draft = self._path.with_suffix(".tmp")
        try:
            draft.write_text(self._content.model_dump_json())
            draft.replace(self._path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            log("what was learned is not kept", path=str(self._path), error=str(error))


def plan_key(model: GgufModel, endpoints: Sequence[str], *asked: object) -> str:
    """Names a load that should be split as it was before: the same file, backends and request."""
    parts = (str(model.path), model.file_bytes, list(endpoints), *asked)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _fits(plan: Plan, devices: Sequence[BackendMemory]) -> bool:
    usable = {(device.endpoint, device.device): device.usable_bytes for device in devices}
    return all(share.total_bytes <= usable.get((share.endpoint, share.device), -1) for share in plan.shares)


def _read(path: Path | None) -> _Content:
    if path is None or not path.exists():
        return _Content()
    try:
        return _Content.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        log("what was learned cannot be read: begun anew", path=str(path), error=str(error))
        return _Content()
