"""Errors that the router answers with."""

import aiohttp

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis

CONNECTION_ERRORS = (aiohttp.ClientError, ConnectionError, TimeoutError)
"""What is raised when a server cannot be reached or breaks off."""

UNKNOWN_MODEL = "unknown_model"


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
        """Headers of the response; one to a request that has not arrived whole ends its connection."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return headers | ({"connection": "close"} if self.status == 408 else {})

    def body(self) -> dict[str, object]:
        """``{"error": {...}}``; OpenAI clients read ``type``, ``param`` and ``code``."""
        error: dict[str, object] = {
            "class": self.error_class,
            "type": "server_error" if self.status >= 500 else "invalid_request_error",
            "param": "model" if self.error_class == UNKNOWN_MODEL else None,
            "code": "model_not_found" if self.error_class == UNKNOWN_MODEL else self.error_class,
            "message": f"{self.message}; {self.hint}" if self.hint else self.message,
        }
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s
        if self.diagnosis:
            error["diagnosis"] = self.diagnosis.model_dump(mode="json")
        if self.state:
            error["state"] = self.state.model_dump(mode="json")
        return {"error": error}

    def ollama_body(self) -> dict[str, object]:
        """``{"error": "...", "details": {...}}``: Ollama's clients expect a string in ``error``."""
        return {"error": self.message, "details": self.body()["error"]}
