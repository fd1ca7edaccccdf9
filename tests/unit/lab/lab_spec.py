"""A small lab in a folder of a test's own."""

from pathlib import Path

from harness.lab.spec import LabSpec


def lab_spec(root: Path) -> LabSpec:
    """A lab of one machine, ``node1``."""
    machine = {"name": "node1", "address": "10.0.0.2", "memory": "1G"}
    return LabSpec.model_validate(
        {
            "name": "t",
            "network": "10.0.0.0/24",
            "machines": [machine],
            "root": root / "labs",
            "cache": root / "cache",
        }
    )
