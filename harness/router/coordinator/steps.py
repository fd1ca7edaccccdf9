"""The steps of a recovery, logged where somebody has asked to see them."""

import os
from collections.abc import Mapping
from typing import Any

from harness.router.config import RouterConfig
from harness.router.logs import log

_VARIABLE = "SOLLOL_DEBUG_COORDINATOR_RECOVERY"


class Steps:
    """Logs each step if the configuration or the environment says so."""

    def __init__(self, config: RouterConfig, environment: Mapping[str, str] = os.environ) -> None:
        asked = environment.get(_VARIABLE, "").strip().lower() in {"1", "true", "yes", "on"}
        self.shown = config.debug_coordinator_recovery or asked

    def __call__(self, step: str, **fields: Any) -> None:
        """One step and its facts."""
        if self.shown:
            log("recovery", step=step, **fields)
