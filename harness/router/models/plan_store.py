"""What the router keeps over restarts: learned compute buffers, calibrated speeds, and the splits in use."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.common.files import write_atomic
from harness.common.text import first_error
from harness.contracts.plan import Plan
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel
from harness.planner.device_capacity import Calibration, DeviceCapacity
from harness.planner.memory import Learned
from harness.router.json_log import log

_FILE = "planning.json"
_KEPT_PLANS = 64
_CLEARLY_FASTER = 0.97


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    learned: Learned = {}
    calibration: Calibration = Calibration()
    plans: dict[str, Plan] = {}


class PlanStore:
    """One JSON file, read once and written after each change.

    Args:
        folder: where the file is; None keeps everything in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / _FILE if folder else None
        self._content = _read(self._path)

    @property
    def learned(self) -> Learned:
        """Compute buffers of earlier loads, bytes."""
        return self._content.learned

    @property
    def calibration(self) -> Calibration:
        return self._content.calibration

    def calibrate(self, calibration: Calibration) -> None:
        """Replace the speeds; without any, also drop all splits that were made from them."""
        self._content.calibration = calibration
        if not calibration.nodes:
            plans = self._content.plans.items()
            self._content.plans = {key: plan for key, plan in plans if plan.token_s is None}
        self._write()

    def remember(self, key: str | None, plan: Plan, learned: Learned) -> None:
        """Keep what a successful load taught, and its split under ``key``; None keeps no split."""
        if key is not None:
            plans = {name: kept for name, kept in self._content.plans.items() if name != key}
            self._content.plans = dict([*plans.items(), (key, plan)][-_KEPT_PLANS:])
        self._content.learned = learned
        self._write()

    def sticky_plan(self, key: str, fresh: Plan, devices: Sequence[DeviceCapacity]) -> Plan:
        """The split that this load had before, if it still fits and the fresh one is not clearly faster.

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
        try:
            write_atomic(self._path, self._content.model_dump_json(), sync=False)
        except HarnessError as error:
            log("plan_store_not_written", level=logging.WARNING, error=str(error))


def plan_key(model: GgufModel, endpoints: Sequence[str], *settings: object) -> str:
    """Key of a load that should be split as before: the same file, backends and settings."""
    parts = (str(model.path), model.file_bytes, list(endpoints), *settings)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _fits(plan: Plan, devices: Sequence[DeviceCapacity]) -> bool:
    usable = {(device.endpoint, device.device): device.usable_bytes for device in devices}
    return all(share.total_bytes <= usable.get((share.endpoint, share.device), -1) for share in plan.shares)


def _read(path: Path | None) -> _Content:
    if path is None or not path.exists():
        return _Content()
    try:
        content = json.loads(path.read_bytes())
        plans = {
            key: plan for key, stored in content.pop("plans", {}).items() if (plan := _valid(key, stored))
        }
        return _Content.model_validate(content | {"plans": plans})
    except (OSError, ValueError, RecursionError, TypeError, AttributeError) as error:
        log("plan_store_unreadable", level=logging.WARNING, path=str(path), error=str(error))
        return _Content()


def _valid(key: str, stored: object) -> Plan | None:
    """A stored plan; None if it breaks a limit that is newer than the plan."""
    try:
        plan = Plan.model_validate(stored)
        problem = plan.contradiction
    except ValidationError as error:
        problem = first_error(error, root="the plan")
    if problem is None:
        return plan
    log("stored_plan_left_out", level=logging.WARNING, key=key, problem=problem)
    return None
