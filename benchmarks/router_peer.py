"""The LiteLLM proxy, installed from its lock file into a virtual environment of its own."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from harness.settings import cache_dir

LOCK = Path(__file__).parents[1] / "requirements" / "peer-litellm.lock"


def environment() -> Path:
    """The virtual environment, made the first time and again when the lock changes."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    folder = cache_dir() / "peers" / f"litellm-{digest}"
    if (folder / ".installed").exists():
        return folder
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", "--require-hashes", "-r", LOCK], check=True)
    (folder / ".installed").touch()
    return folder


def litellm_command(port: int, upstream: int, key: str, folder: Path) -> list[str]:
    """The proxy with the upstream as its one model; one worker, no database, quiet as its docs advise."""
    model = {"model": "openai/m", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none-is-needed"}
    config = {
        "model_list": [{"model_name": "m", "litellm_params": model}],
        "general_settings": {"master_key": key},
        "litellm_settings": {"telemetry": False, "set_verbose": False},
    }
    path = folder / "litellm.yaml"
    path.write_text(json.dumps(config))
    binary = environment() / "bin" / "litellm"
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [str(binary), "--config", str(path), *where, "--num_workers", "1", "--telemetry", "False"]
