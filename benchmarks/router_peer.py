"""The LiteLLM proxy in front of our own upstream."""

import json
from pathlib import Path

from peer import environment


def litellm_command(port: int, upstream: int, key: str, folder: Path) -> list[str]:
    """The proxy with the upstream as its only model: one worker, no database, few logs, as its docs say."""
    model = {"model": "openai/m", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none-is-needed"}
    config = {
        "model_list": [{"model_name": "m", "litellm_params": model}],
        "general_settings": {"master_key": key},
        "litellm_settings": {"telemetry": False, "set_verbose": False},
    }
    path = folder / "litellm.yaml"
    path.write_text(json.dumps(config))
    binary = environment("litellm") / "bin" / "litellm"
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [str(binary), "--config", str(path), *where, "--num_workers", "1", "--telemetry", "False"]
