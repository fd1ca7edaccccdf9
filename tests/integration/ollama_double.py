"""A double of Ollama, which no registry carries: answers ``/api/*`` and ``/v1/*`` from a real llama-server.

Its own code, none of the router's, so that a mistake in the conversion cannot hide in both. It keeps what it
was asked: tests see which bytes came through. Run as ``python ollama_double.py PORT LLAMA_SERVER_URL KEY``.
"""

import http.client
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

MODEL = "ollama-tiny:latest"
ODD_FIELD = "only_ollama_knows_this"
"""In every answer: it arrives only where bytes are passed on."""
HOLD = "hold_after_the_first_word"
"""An option: the rest of a stream waits until somebody has asked for ``/go``."""


class Double(BaseHTTPRequestHandler):
    """One request; the last body of each path is told at ``/asked``."""

    upstream: tuple[str, str]
    asked: dict[str, str] = {}  # noqa: RUF012 - one double a process
    told = threading.Event()
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """Lists and the version."""
        if self.path == "/go":
            self.told.set()
            self._json(200, {})
            return
        entry = {"name": MODEL, "model": MODEL, "size": 96576768, "digest": "f" * 64, "details": {}}
        answers: dict[str, Any] = {
            "/api/tags": {"models": [entry | {"modified_at": "2026-01-02T03:04:05Z"}]},
            "/api/ps": {"models": [entry | {"size_vram": 1, "expires_at": "2030-01-02T03:04:05Z"}]},
            "/api/version": {"version": "0.12.6"},
            "/asked": self.asked,
        }
        self._json(200, answers[self.path])

    def do_POST(self) -> None:
        """Whatever asks a model."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.asked[self.path] = body.decode()
        asked = json.loads(body)
        if self.path == "/api/chat":
            self._chat(asked)
        elif self.path == "/api/show":
            self._json(200, {"details": {"family": "llama"}, "model_info": {ODD_FIELD: 1}})
        elif self.path == "/api/embed":
            answer = self._ask("/v1/embeddings", {"input": asked["input"], "encoding_format": "float"})
            vectors = [one["embedding"] for one in answer["data"]]
            self._json(200, {"model": asked["model"], "embeddings": vectors, ODD_FIELD: True})
        else:
            self._json(200, self._ask(self.path, asked) | {ODD_FIELD: True})

    def _chat(self, asked: dict[str, Any]) -> None:
        options = asked.get("options", {})
        wanted = {
            "messages": asked["messages"],
            "max_tokens": options.get("num_predict", 8),
            "temperature": 0,
        }
        text = self._ask("/v1/chat/completions", wanted)["choices"][0]["message"]["content"]
        head = {"model": asked["model"], "created_at": "2026-01-02T03:04:05.123456789Z", ODD_FIELD: True}
        last = {"done": True, "done_reason": "stop", "eval_count": 8, "eval_duration": 123456789}
        if asked.get("stream") is False:
            self._json(200, head | {"message": {"role": "assistant", "content": text}} | last)
            return
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        lines = [
            {"message": {"role": "assistant", "content": word}, "done": False} for word in text.split(" ")
        ]
        for line in [*lines, {"message": {"role": "assistant", "content": ""}} | last]:
            data = json.dumps(head | line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            if options.get(HOLD):
                self.told.wait(60)
        self.wfile.write(b"0\r\n\r\n")

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        url, key = self.upstream
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", path, json.dumps(body), {"authorization": f"Bearer {key}"})
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def _json(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Double.upstream = (sys.argv[2], sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Double).serve_forever()
