"""What integration tests stand on: the pinned llama.cpp build, on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness.settings import DEFAULT_INVENTORY, REPOSITORY, cache_dir


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
    playbook = Path(__file__).with_name("llama_build.yml")
    ansible = Path(sys.executable).with_name("ansible-playbook")
    command = [str(ansible), "-i", "localhost,", str(playbook), "-e", json.dumps(variables)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(
            f"the pinned build cannot be had:\n{done.stdout[-3000:]}{done.stderr[-1000:]}", pytrace=False
        )
    return (prefix / "current").resolve() / "bin"
