"""What browser tests of the router stand on: the pinned build and the real small model."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from tests.integration.conftest import llama_build, smollm2

__all__ = ["llama_build", "smollm2"]
