"""What a model server's error means to the client: its message, and whose mistake it was.

llama-server (b6751, ``tools/server``) answers 500 to much that no repetition will mend, and clients repeat a
500. The messages are its own; a release that words them differently is relayed as it is.
"""

from typing import Any

from harness.router.errors import RouterError

_CLIENTS = (
    ("image input is not supported", "no_vision", "model '{model}' does not support images"),
    ("audio input is not supported", "no_audio", "model '{model}' does not support audio"),
    ("requires --jinja flag", "no_tools", "the server of model '{model}' runs without tools (--jinja)"),
    ("does not support embeddings", "no_embeddings", "the server of model '{model}' gives no embeddings"),
    ("Pooling type 'none'", "no_embeddings", "the server of model '{model}' gives no embeddings"),
    ("Infill is not supported", "no_insert", "model '{model}' does not support insert (suffix)"),
    ("' is required", "bad_request", "{message}"),
    ("Expected '", "bad_request", "{message}"),
    ("must contain", "bad_request", "{message}"),
    ("must be ", "bad_request", "{message}"),
    ("Only one completion choice is allowed", "bad_request", "{message}"),
    ("unsupported content[].type", "bad_request", "{message}"),
    ("Invalid image_url", "bad_request", "{message}"),
    ("top_logprobs requires", "bad_request", "{message}"),
    ("Cannot use", "bad_request", "{message}"),
    ("Failed to load image", "bad_request", "{message}"),
    ("parse error", "bad_request", "{message}"),
    ("Assistant response prefill", "bad_request", "{message}"),
)
"""Part of the message, class of the error, what the client is told."""


def error_message(body: Any) -> str:
    """The message in an error body, OpenAI's or Ollama's."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "no message")


def clients_mistake(status: int, body: Any, *, model: str) -> RouterError | None:
    """The 400 that a server's 5xx should have been; None where it was the server's own failure."""
    if status < 500:
        return None
    message = error_message(body)
    for part, error_class, told in _CLIENTS:
        if part in message:
            return RouterError(400, error_class, told.format(model=model, message=message))
    return None


def refusal(status: int, body: Any, *, model: str) -> RouterError:
    """The error for an answer that is none."""
    return clients_mistake(status, body, model=model) or RouterError(status, "upstream", error_message(body))
