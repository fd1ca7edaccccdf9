"""`-e name=false` gives a string, which is true in a condition: reads of boolean variables convert it."""

import re
from pathlib import Path

import pytest
import yaml
from harness.settings import REPOSITORY

ROLES = sorted(path for path in (REPOSITORY / "roles").iterdir() if path.is_dir())


def booleans(role: Path) -> list[str]:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    options = [option for spec in specs.values() for option in spec.get("options", {}).items()]
    return [name for name, option in options if option["type"] == "bool"]


def unconverted(role: Path, name: str) -> list[str]:
    read = re.compile(rf"\b{name}\b(?!\s*(\|\s*bool\b|:|=true\b))")  # not in "set x=true"
    files = [path for part in ("tasks", "handlers", "vars", "templates") for path in role.glob(f"{part}/*")]
    return [
        f"{path.relative_to(role)}: {line.strip()}"
        for path in files
        for line in path.read_text().splitlines()
        if read.search(line) and not line.lstrip().startswith("#")
    ]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_boolean_variables_are_converted_where_they_are_read(role: Path) -> None:
    assert [line for name in booleans(role) for line in unconverted(role, name)] == []


def test_a_read_without_conversion_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/main.yml").write_text("when: x_on\nwhen: x_on | bool\nx_on: true\n")
    assert unconverted(tmp_path, "x_on") == ["tasks/main.yml: when: x_on"]
