"""Lines of the router's log, as a program reads them."""

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from harness.router.json_log import configure_logging, log, request_id


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging()
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_holds_its_event_its_fields_and_the_request(stream: io.StringIO) -> None:
    token = request_id.set("r1")
    log("request", status=200, path="/v1/models")
    request_id.reset(token)
    [line] = lines(stream)
    assert line.pop("time_ns") > 0
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "r1",
        "status": 200,
        "path": "/v1/models",
    }


def test_line_of_an_exception_carries_its_traceback(stream: io.StringIO) -> None:
    log("background_task_failed", level=logging.ERROR, traceback_of=ValueError("odd"))
    [line] = lines(stream)
    assert line["level"] == "error"
    assert "ValueError: odd" in line["traceback"]


def test_lines_of_libraries_are_json_too(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    assert lines(stream)[0]["event"] == "Started server process [7]"


def test_no_line_of_a_thread_is_lost(stream: io.StringIO) -> None:
    def write() -> None:
        for number in range(500):
            log("line", number=number)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(stream)) == 2000
