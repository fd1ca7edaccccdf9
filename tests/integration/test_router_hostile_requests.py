"""Requests that end or hang a llama-server: refused by name, or answered without the dangerous part."""

import http.client
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.release_proof.local import local_build
from tests.integration.hostile_requests import (
    CHAT,
    COMPLETION,
    DATETIME,
    EMAIL,
    LOOK_AHEAD,
    REFUSED,
    Hostile,
    encoded,
    of_pattern,
)
from tests.integration.router_stack import RouterStack, free_port, listens, wait_for

pytestmark = pytest.mark.integration
OLD, PINNED = 6751, 11549
SHORT = {"grammar of many groups", "reference to itself in allOf", "long name"}
"""Those that show in each run that the pinned build does end."""
PATTERNS = {
    r"^(?:ab|cd)\d{2}$": r"(ab|cd)\d\d",
    r"^\"q\\$": r'"q\\',
    r"^[^a-z\"]{2}$": r'[^a-z"]{2}',
    r"^é\.?$": r"é\.?",
    r"^$": r"",
    r"^a{0}b$": r"b",
    r"^a|^b$": r"a.*|b",
}


class Alone:
    """A llama-server with nothing before it."""

    def __init__(self, binaries: Path, model: Path) -> None:
        self._port = free_port()
        self.process = subprocess.Popen(
            [
                *(str(binaries / "llama-server"), "-m", str(model), "--host", "127.0.0.1"),
                *("--port", str(self._port), "-c", "1024", "-np", "2", "--no-webui", "--jinja"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: listens(self._port), 60, "llama-server")
        wait_for(lambda: self._post("/health", None) == 200, 60, "its model")

    def ends(self, request: Hostile) -> bool:
        """Whether it ends when it gets the request."""
        self._post(request.path, encoded(request.body))
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(10) < 0
        return False

    def _post(self, path: str, body: bytes | None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST" if body else "GET", path, body, {"content-type": "application/json"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


def builds(llama_build: Path, build: int) -> Path:
    return llama_build if build == PINNED else local_build(build)


@pytest.fixture(
    scope="module", params=[PINNED, pytest.param(OLD, marks=pytest.mark.long)], ids=lambda build: f"b{build}"
)
def stack(
    request: pytest.FixtureRequest, llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    stack = RouterStack(builds(llama_build, request.param), smollm2, tmp_path_factory.mktemp("hostile"))
    yield stack
    stack.close()


def is_unharmed(stack: RouterStack) -> bool:
    """The pool's server is the one that was started, and answers."""
    status, _, _ = stack.call(COMPLETION, {"model": "tiny", "prompt": "hi", "max_tokens": 1})
    return stack._pool.poll() is None and status == 200


def test_requests_that_end_a_server_are_refused_by_name(stack: RouterStack) -> None:
    for hostile in REFUSED:
        status, answer, _ = stack.call_bytes(hostile.path, encoded(hostile.body))
        assert status == 400, hostile
        message = answer["error"] if isinstance(answer["error"], str) else answer["error"]["message"]
        assert len(message) < 500, hostile
    assert is_unharmed(stack)
    assert (stack.folder / "router.log").stat().st_size < 1 << 20, "nothing of them is in the log"


@pytest.mark.parametrize(
    "hostile",
    [pytest.param(one, marks=[] if one.name == "look-ahead" else pytest.mark.long) for one in LOOK_AHEAD],
    ids=str,
)
def test_patterns_of_client_libraries_are_answered(stack: RouterStack, hostile: Hostile) -> None:
    status, answer, headers = stack.call(hostile.path, hostile.body)
    assert status == 200, answer
    exact = hostile.name in ("group", "named group")
    assert ("pattern" in headers.get("x-llama-ignored", "")) is not exact
    assert is_unharmed(stack)


def test_schema_of_zod_is_answered_on_both_apis(stack: RouterStack) -> None:
    texts = {"mail": {"type": "string", "pattern": EMAIL}, "at": {"type": "string", "pattern": DATETIME}}
    whole = {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1}
    wanted = {"type": "object", "properties": texts | {"n": whole}, "required": ["mail", "at", "n"]}
    said = [{"role": "user", "content": "hi"}]
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}}
    body = {"model": "tiny", "messages": said, "response_format": wrapped, "max_tokens": 4}
    assert stack.call(CHAT, body)[0] == 200
    options = {"num_predict": 4}
    ollama = {"model": "tiny", "messages": said, "format": wanted, "stream": False, "options": options}
    status, _, headers = stack.call("/api/chat", ollama)
    assert status == 200
    assert "mail.pattern" in headers["x-llama-ignored"]
    assert "at.pattern" not in headers["x-llama-ignored"]
    assert is_unharmed(stack)


@pytest.mark.parametrize(
    ("pattern", "meaning"),
    [
        pytest.param(*item, marks=[] if number == 0 else pytest.mark.long)
        for number, item in enumerate(PATTERNS.items())
    ],
    ids=range(len(PATTERNS)),
)
def test_pattern_still_binds_the_model(stack: RouterStack, pattern: str, meaning: str) -> None:
    asked = {"model": "tiny", "prompt": "A word:", "max_tokens": 20, "temperature": 0}
    connection, answer = stack.send(COMPLETION, asked | {"json_schema": of_pattern(pattern)}, timeout=300)
    (choice,) = json.loads(answer.read())["choices"]
    connection.close()
    assert answer.getheader("x-llama-ignored") is None
    value, _ = json.JSONDecoder().raw_decode(choice["text"].lstrip())
    assert re.fullmatch(meaning, value["a"], re.DOTALL)


def test_what_has_no_effect_is_named(stack: RouterStack) -> None:
    asked = {"prompt": "hi", "max_tokens": 1, "user": "me", "max_completion_tokens": 1}
    for model in ("tiny", "smollm2"):
        status, answer, headers = stack.call(COMPLETION, asked | {"model": model})
        too_new = f"b{OLD}" in answer["system_fingerprint"]
        named = "user, max_completion_tokens" if too_new else "user"
        assert (status, headers["x-llama-ignored"]) == (200, named)


@pytest.mark.parametrize(
    ("build", "hostile"),
    [
        pytest.param(
            build,
            hostile,
            id=f"b{build}-{hostile}",
            marks=[] if build == PINNED and hostile.name in SHORT else pytest.mark.long,
        )
        for hostile in [*REFUSED, *LOOK_AHEAD]
        for build in sorted(hostile.ends)
    ],
)
def test_without_the_table_it_ends_the_server(
    llama_build: Path, smollm2: Path, build: int, hostile: Hostile
) -> None:
    server = Alone(builds(llama_build, build), smollm2)
    try:
        assert server.ends(hostile)
    finally:
        server.process.kill()
        server.process.wait(10)
