"""Errors that the router answers with."""

import re

import aiohttp

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis

CONNECTION_ERRORS = (aiohttp.ClientError, ConnectionError, TimeoutError)
"""What is raised when a server cannot be reached or breaks off."""

UNKNOWN_MODEL = "unknown_model"
_INSIDE = re.compile(
    r"https?://[^\s,;]+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|(?<![\w./-])/[\w.-]+/[\w./-]+|\bpid \d+"
)
"""Addresses, paths of files and process ids."""


class RouterError(Exception):
    """An error with an HTTP status, a class for programs and a message for people.

    Args:
        hint: more text for the message, where the message itself has to be one that clients know.
        state: the coordinator's state, with its diagnosis.
        retry_after_s: when a retry makes sense, seconds; the header ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        error_class: str,
        message: str,
        *,
        state: CoordinatorState | None = None,
        diagnosis: Diagnosis | None = None,
        retry_after_s: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_class = error_class
        self.message = message
        self.hint = hint
        self.state = state
        self.retry_after_s = retry_after_s
        self.diagnosis = diagnosis or (state.diagnosis if state else None)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}

    def body(self, request_id: str | None = None, *, for_admin: bool = False) -> dict[str, object]:
        """``{"error": {...}}``; OpenAI clients read ``type``, ``param`` and ``code``.

        Args:
            for_admin: with the coordinator's state and diagnosis, and addresses and paths in the message.
        """
        message = f"{self.message}; {self.hint}" if self.hint else self.message
        error: dict[str, object] = {
            "class": self.error_class,
            "type": "server_error" if self.status >= 500 else "invalid_request_error",
            "param": "model" if self.error_class == UNKNOWN_MODEL else None,
            "code": "model_not_found" if self.error_class == UNKNOWN_MODEL else self.error_class,
            "message": message if for_admin else self._for_users(message),
        }
        if request_id:
            error["request_id"] = request_id
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s
        if for_admin and self.diagnosis:
            error["diagnosis"] = self.diagnosis.model_dump(mode="json")
        if for_admin and self.state:
            error["state"] = self.state.model_dump(mode="json")
        return {"error": error}

    def ollama_body(self, request_id: str | None = None) -> dict[str, object]:
        """``{"error": "...", "details": {...}}``: Ollama's clients expect a string in ``error``."""
        return {"error": self._for_users(self.message), "details": self.body(request_id)["error"]}

    def _for_users(self, message: str) -> str:
        """A message without addresses and paths of the cluster; a client error names what the client sent."""
        return _INSIDE.sub("...", message) if self.status >= 500 else message
