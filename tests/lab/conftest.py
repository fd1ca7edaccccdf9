"""The lab that the lab tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.llama.gguf import read_gguf
from tests.lab.lab_under_test import LabUnderTest, missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs real machines; where there can be none, say so and skip."""
    reason = missing()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def empty_lab2() -> Iterator[LabUnderTest]:
    """The two-node lab of tests/lab/inventory, not up unless a test brought it up.

    Whatever an earlier session left of it is taken down first, so that each begins with fresh machines. With
    LLAMA_HARNESS_KEEP_LAB=1 a lab that stands is used as it is, and is left standing.
    """
    lab = LabUnderTest(HERE / "inventory")
    keep = os.environ.get("LLAMA_HARNESS_KEEP_LAB") == "1"
    if not keep and lab.folder.exists():
        lab.down()
    try:
        yield lab
    finally:
        if not keep:
            lab.down()


@pytest.fixture(scope="session")
def lab2(empty_lab2: LabUnderTest) -> LabUnderTest:
    """The two-node lab, booted once for all tests."""
    empty_lab2.up()
    return empty_lab2


@pytest.fixture(scope="session")
def models(smollm2: Path, synthetic_1b: Path) -> None:
    """The two small models, in the folder that the machines see."""
    for model in (smollm2, synthetic_1b):
        read_gguf(model)


@pytest.fixture(scope="session")
def done() -> set[str]:
    """What this session has done to the two-node lab: ``site.yml``."""
    return set()


@pytest.fixture(scope="session")
def deployed(lab2: LabUnderTest, models: None, done: set[str]) -> LabUnderTest:
    """The lab with everything of site.yml, until test_taking_down.py takes it away."""
    if "site.yml" not in done:
        lab2.ansible("site.yml")
    return lab2
