"""JSON log lines with the id of the request they belong to. Keys and prompts are never logged."""

import asyncio
import json
import logging
import sys
import threading
import time
from contextvars import ContextVar
from typing import Any, TextIO

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Set for each request; every line logged while it is served carries it."""

_LOGGER = logging.getLogger("llama_router")
_ENCODE = json.JSONEncoder(default=str).encode
_SINKS: "list[HeldLines]" = []
"""Where a line goes without a record being made of it, once logging is configured."""
_HELD_S = 0.05
_HELD_LINES = 1000


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        if record.exc_info:
            fields = {**fields, "traceback": self.formatException(record.exc_info)}
        return _line(record.levelname.lower(), record.getMessage(), fields)


def _line(level: str, event: str, fields: dict[str, Any]) -> str:
    line: dict[str, Any] = {"time_ns": time.time_ns(), "level": level, "event": event}
    if rid := request_id.get():
        line["request_id"] = rid
    return _ENCODE(line | fields)


class HeldLines(logging.Handler):
    """Writes lines of the same moment in one go: a write costs more than all that makes the line.

    A line waits for at most 50 ms, and not at all if it is a warning or no loop is running.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._writing = threading.RLock()
        self._timer: asyncio.TimerHandle | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line."""
        self.hold(self.format(record), at_once=record.levelno >= logging.WARNING)

    def hold(self, line: str, *, at_once: bool = False) -> None:
        """Keep a line until the others of its moment have come; ``at_once`` writes them all now."""
        self._lines.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if at_once or len(self._lines) >= _HELD_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = loop.call_later(_HELD_S, self.flush)

    def flush(self) -> None:
        """Write what is held."""
        with self._writing:
            if self._timer:
                self._timer.cancel()
                self._timer = None
            if self._lines:
                text, self._lines = "\n".join(self._lines) + "\n", []
                self._stream.write(text)
                self._stream.flush()


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with its fields."""
    if level == logging.INFO and _SINKS:
        for sink in _SINKS:
            sink.hold(_line("info", event, fields))
    elif _LOGGER.isEnabledFor(level):
        # Made here: the logging module would look for the caller's file and line, which no line shows.
        record = logging.LogRecord(_LOGGER.name, level, "", 0, event, None, None)
        record.fields = fields
        _LOGGER.handle(record)


def configure_logging() -> None:
    """Send every line, uvicorn's and aiohttp's included, to stderr as JSON."""
    # No line shows these; each costs with every record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = HeldLines(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    _SINKS[:] = [handler]
