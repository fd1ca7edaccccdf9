"""What browser tests stand on: Debian's chromium, the pinned build and the real small model."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.integration.conftest import llama_build

__all__ = ["llama_build"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where screens are kept: ``BROWSER_SCREENS``, else with the test's other files."""
    folder = Path(os.environ.get("BROWSER_SCREENS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
