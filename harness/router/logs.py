"""JSON log lines with the id of the request they belong to. Keys and prompts are never logged."""

import json
import logging
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


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with its fields."""
    _LOGGER.log(level, event, extra={"fields": fields})


def configure_logging() -> None:
    """Send every line, uvicorn's and aiohttp's included, to stderr as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
