"""What tests of several folders stand on: models that README's commands have brought."""

from pathlib import Path

import pytest
from harness.settings import cache_dir


def brought(name: str) -> Path:
    """A model of the cache. Tests do not bring it themselves: they would hide a command that does not."""
    path = cache_dir() / "models" / f"{name}.gguf"
    assert path.exists(), f"{path} is not there: `make models PROFILE=smoke` brings it"
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real small model."""
    return brought("smollm2")


@pytest.fixture(scope="session")
def synthetic_1b() -> Path:
    """The shape of a 1B in Q8_0, with random weights."""
    return brought("1b-q8_0")
