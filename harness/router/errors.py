"""What the router answers when it cannot do what was asked."""

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis

UNKNOWN_MODEL = "unknown_model"


class RouterError(Exception):
    """An error with an HTTP status, a class for programs and a message for people."""

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
        """What may help a person, where a client knows the message by heart."""
        self.state = state
        self.retry_after_s = retry_after_s
        """When asking again is worth it, seconds; the header ``Retry-After``."""
        self.diagnosis = diagnosis or (state.diagnosis if state else None)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the error."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}

    def body(self) -> dict[str, object]:
        """``{"error": {...}}``; ``type``, ``param`` and ``code`` are there for OpenAI clients."""
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
        """Ollama's clients expect a string in ``error``; the rest stands beside it."""
        body = self.body()["error"]
        return {"error": self.message, "details": body}
