"""The pages in docs/ that are made from the code say what the code says."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from harness.diagnosis import table
from harness.diagnosis.model import FailureClass
from harness.diagnosis.rules import RULES
from harness.trials.profile import schema_text

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _script("inventory_reference")
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir() if path.is_dir())


def test_page_of_diagnoses_is_up_to_date() -> None:
    assert (DOCS / "diagnoses.md").read_text() == table.markdown(), (
        "run: python -m harness.diagnosis.table > docs/diagnoses.md"
    )


def test_page_of_the_inventory_is_up_to_date() -> None:
    assert (DOCS / "inventory.md").read_text() == reference.markdown(), (
        "run: python scripts/inventory_reference.py"
    )


def test_schema_of_profiles_is_up_to_date() -> None:
    assert (DOCS / "profile.schema.json").read_text() == schema_text(), (
        "run: harness run schema > docs/profile.schema.json"
    )


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_specified_and_shown(role: str) -> None:
    options = reference.specification(role)["options"]
    assert set(reference.defaults(role)) <= set(options)
    page = (DOCS / "inventory.md").read_text()
    assert [name for name in options if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("role", ROLES)
def test_specification_and_defaults_name_the_same_value(role: str) -> None:
    values: dict[str, Any] = reference.defaults(role)
    stated = {
        name: option["default"]
        for name, option in reference.specification(role)["options"].items()
        if "default" in option and not reference.is_expression(values.get(name))
    }
    assert stated == {name: values[name] for name in stated}


def test_every_class_is_decided() -> None:
    decided = {rule.failure_class for rule in RULES} | {failure for failure, _, _ in table.ELSEWHERE}
    assert decided == set(FailureClass)


@pytest.mark.parametrize(("failure", "where"), [(failure, where) for failure, _, where in table.ELSEWHERE])
def test_file_that_decides_a_class_names_it(failure: FailureClass, where: str) -> None:
    assert _names(REPOSITORY / where, failure)


def _names(path: Path, failure: FailureClass) -> bool:
    return f"FailureClass.{failure.name}" in path.read_text()


def test_every_rule_says_what_decides_it() -> None:
    assert [rule for rule in RULES if not table.what_decides(rule)] == []
    said = [(rule.process, table.what_decides(rule)) for rule in RULES]
    assert len(said) == len(set(said)), "two rules read alike: a condition has no docstring"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md")))])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    source = REPOSITORY / page
    # Runs land in reports/: what is there differs from one checkout to the next.
    targets = [t for t in LINK.findall(source.read_text()) if "reports/" not in t]
    assert [target for target in targets if not (source.parent / target).exists()] == []
