"""Lays models out as ``ollama pull`` does."""

import hashlib
import json
import shutil
from pathlib import Path


def pull(storage: Path, manifest: str, gguf: Path, mark: str = "-", media: str = "model") -> str:
    """Put a model into a storage; gives its digest."""
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    blob = storage / "blobs" / f"sha256{mark}{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(gguf, blob)
    path = storage / "manifests" / manifest
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:00", "size": 2}
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:11", "size": 7},
        {
            "mediaType": f"application/vnd.ollama.image.{media}",
            "digest": f"sha256:{digest}",
            "size": gguf.stat().st_size,
        },
        {"mediaType": "application/vnd.ollama.image.params", "digest": "sha256:22", "size": 5},
    ]
    media_type = "application/vnd.docker.distribution.manifest.v2+json"
    path.write_text(
        json.dumps({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers})
    )
    return f"sha256:{digest}"
