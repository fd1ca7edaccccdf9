"""The router's log: one JSON object a line on stderr. Keys and prompts are never logged.

Events are stable tokens, listed with their fields in docs/log-events.md.
"""

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Set for each request; every line logged while it is served carries it."""

_LOGGER = logging.getLogger("llama_router")


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time_ns": time.time_ns(),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if rid := request_id.get():
            line["request_id"] = rid
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log(
    event: str, *, level: int = logging.INFO, traceback_of: BaseException | None = None, **fields: Any
) -> None:
    """Log an event of docs/log-events.md with its fields, and with the traceback of an exception."""
    _LOGGER.log(level, event, exc_info=traceback_of, extra={"fields": fields})


def log_debug(event: str, **fields: Any) -> None:
    """Log one event that is shown only after ``show_debug``."""
    log(event, level=logging.DEBUG, **fields)


def show_debug() -> None:
    """Show debug events of the router."""
    _LOGGER.setLevel(logging.DEBUG)


def configure_logging() -> None:
    """Send every line, uvicorn's and aiohttp's included, to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
