"""What integration tests stand on: the pinned llama.cpp build, on this machine."""

from pathlib import Path

import pytest
import yaml
from harness.release_proof.local import local_build
from harness.settings import DEFAULT_INVENTORY


@pytest.fixture(scope="session")
def llama_build() -> Path:
    """Folder with rpc-server, llama-server and llama-bench of the build that the lab pins.

    Taken from the harness's cache of builds where a deployment has filled it, else built here, once.
    """
    pins = yaml.safe_load((DEFAULT_INVENTORY / "group_vars" / "all.yml").read_text(encoding="utf-8"))
    return local_build(pins["llama_cpp_build"], activate=True)


@pytest.fixture(scope="session")
def protocol_2_build() -> Path:
    """Folder with rpc-server of build 6666, which speaks protocol 2; made as ``llama_build`` is."""
    return local_build(6666, ["rpc-server"])
