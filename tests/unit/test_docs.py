"""The pages in docs/ say what the code says: those that are made from it, and what people wrote besides."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
import yaml
from harness.cli import app
from harness.contracts.diagnosis import FailureClass
from harness.diagnosis.rules import RULES
from harness.router.api.admin import Admin
from harness.router.api.health import Health
from harness.router.api.ollama.handlers import OllamaApi
from harness.router.api.ollama.models import OllamaModels
from harness.router.api.openai import OpenAiApi
from harness.router.api.resources import ResourcesApi
from harness.router.dashboard.page import Dashboard
from harness.trials.profile.profile import parse_profile, schema_text

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md")))]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
FOLDERS = "playbooks|roles|inventories|benchmarks|harness|docs|tests|scripts|requirements"
OF_THE_READER = {"inventories/mine"}
"""Paths that a page tells its reader to make."""
USAGE_ERROR: Any = typer.BadParameter.__base__
"""Of the click that typer brings."""
ROUTER_PATHS = "v1|api|admin|metrics|readyz|healthz|dashboard|router"


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _script("inventory_reference")
diagnoses = _script("diagnoses_page")
sample_reference = _script("node_sample_reference")
request_fields = _script("request_fields_page")
known_issues = _script("known_issues_page")
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir() if path.is_dir())


def test_page_of_diagnoses_is_up_to_date() -> None:
    assert (DOCS / "diagnoses.md").read_text() == diagnoses.markdown(), (
        "run: python scripts/diagnoses_page.py"
    )


def test_page_of_the_inventory_is_up_to_date() -> None:
    assert (DOCS / "inventory.md").read_text() == reference.markdown(), (
        "run: python scripts/inventory_reference.py"
    )


def test_page_of_the_node_sample_is_up_to_date() -> None:
    assert (DOCS / "node-sample.md").read_text() == sample_reference.markdown(), (
        "run: python scripts/node_sample_reference.py"
    )


def test_page_of_the_request_fields_is_up_to_date() -> None:
    assert (DOCS / "request-fields.md").read_text() == request_fields.markdown(), (
        "run: python scripts/request_fields_page.py"
    )


def test_page_of_known_issues_is_up_to_date() -> None:
    assert (DOCS / "known-issues.md").read_text() == known_issues.markdown(), (
        "run: python scripts/known_issues_page.py"
    )


def test_every_field_of_the_node_sample_has_a_meaning() -> None:
    rows = [line for line in sample_reference.markdown().splitlines() if line.startswith("| `")]
    assert rows
    assert all(row.split("|")[3].strip() for row in rows)


def test_schema_of_profiles_is_up_to_date() -> None:
    assert (DOCS / "profile.schema.json").read_text() == schema_text(), (
        "run: harness run schema > docs/profile.schema.json"
    )


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_no_place_is_left_to_be_filled(page: str) -> None:
    assert re.findall(r"@[A-Z]{3,}@", (REPOSITORY / page).read_text()) == []


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


def test_every_class_is_decided_by_a_rule_or_named_with_its_reason() -> None:
    page = (DOCS / "templates" / "diagnoses.md.in").read_text()
    outside = {FailureClass(name) for name in re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)}
    assert {rule.failure_class for rule in RULES} | outside == set(FailureClass)


def test_every_rule_says_what_decides_it() -> None:
    assert [rule for rule in RULES if not diagnoses.what_decides(rule)] == []
    texts = [(rule.process, diagnoses.what_decides(rule)) for rule in RULES]
    assert len(texts) == len(set(texts)), "two rules read alike: a condition has no docstring"


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    source = REPOSITORY / page
    # Runs land in reports/: what is there differs from one checkout to the next.
    targets = [t for t in LINK.findall(source.read_text()) if "reports/" not in t]
    assert [target for target in targets if not (source.parent / target).exists()] == []


def _blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of code; indented ones have no language."""
    text = (REPOSITORY / page).read_text()
    fenced = [(found[1], found[2]) for found in FENCED.finditer(text)]
    rest = FENCED.sub("", text)
    # Lines of a list's item are indented too, but never by as much as code.
    indented = [re.sub(r"^    ", "", found[0], flags=re.MULTILINE) for found in INDENTED.finditer(rest)]
    return [*fenced, *(("", text) for text in indented)]


def _inline(page: str) -> list[str]:
    return INLINE.findall(FENCED.sub("", (REPOSITORY / page).read_text()))


def _code(page: str) -> str:
    """All that a page sets as code, one piece a line."""
    return "\n".join([*(text for _, text in _blocks(page)), *_inline(page)])


def _lines(page: str) -> Iterator[tuple[str, bool]]:
    """Commands, without prompt and comment, and whether each stands in a block: there it is to be typed."""
    for _, text in _blocks(page):
        for line in text.replace("\\\n", " ").splitlines():
            yield re.split(r"\s{2,}|\s#\s", line.removeprefix("$ ").strip())[0], True
    for line in _inline(page):
        yield line, False


def _commands(page: str, program: str) -> list[tuple[str, bool]]:
    return [(line, whole) for line, whole in _lines(page) if line.split(" ")[0] == program]


def _misused(line: str, whole: bool) -> str | None:
    """What is wrong with a ``harness`` command; what it takes may be left out where it is only spoken of."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        name, *words = words
        if name not in command.commands:
            return f"{line}: there is no '{name}'"
        command = command.commands[name]
    try:
        command.make_context(line, words)  # parses, and runs nothing
    except USAGE_ERROR as error:
        told = error.format_message()
        left_out = not words or "Missing" in told or "requires an argument" in told
        return None if left_out and not whole else f"{line}: {told}"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_harness_commands_exist_with_their_options(page: str) -> None:
    wrong = [_misused(line, whole) for line, whole in _commands(page, "harness")]
    assert [one for one in wrong if one] == []


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_exist(page: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([\w./-]+):", makefile, re.MULTILINE))
    named = {word for line, _ in _commands(page, "make") for word in line.split()[1:] if "=" not in word}
    assert named - targets == set()


@pytest.mark.parametrize("page", PAGES)
def test_playbooks_exist(page: str) -> None:
    named = [
        word for line, _ in _commands(page, "ansible-playbook") for word in line.split() if ".yml" in word
    ]
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_repository_exist(page: str) -> None:
    named = re.findall(rf"(?<![\w./:-])(?:{FOLDERS})/[\w./*-]*[\w*]", _code(page))
    there = {name for name in named if any(REPOSITORY.glob(name))}
    mine = {name for name in named if any(name == one or name.startswith(f"{one}/") for one in OF_THE_READER)}
    assert set(named) - there - mine == set()


def _variables() -> dict[str, Any]:
    """Variables of all roles with their defaults; None where there is none or Ansible has to work it out."""
    found: dict[str, Any] = {}
    for role in ROLES:
        specs = yaml.safe_load((REPOSITORY / "roles" / role / "meta" / "argument_specs.yml").read_text())
        for entry in specs["argument_specs"].values():
            found |= {name: option.get("default") for name, option in entry.get("options", {}).items()}
        found |= {n: None if reference.is_expression(v) else v for n, v in reference.defaults(role).items()}
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in ("docs/log-events.md", "CONTRIBUTING.md")]
)
def test_variables_of_roles_exist(page: str) -> None:
    named = set(re.findall(rf"\b(?:{'|'.join(ROLES)})_[a-z0-9_]*[a-z0-9]\b", _code(page)))
    assert named - _variables().keys() == set()


def _stated_defaults(page: str) -> Iterator[tuple[str, str]]:
    """Variables with the default that a page states: in brackets behind the name, or in a table's column."""
    text = (REPOSITORY / page).read_text()
    yield from re.findall(r"`(\w+)` \((\d[\w ,.]*)\)", text)
    column = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if "Default" in cells:
            column = cells.index("Default")
        elif not cells:
            column = None
        elif column is not None and column < len(cells) and page != "docs/inventory.md":
            names = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
            yield from ((name, cells[column]) for name in names)


def _plain(value: Any) -> str:
    """A value without its unit, sizes as Ansible writes them: ``64 KiB`` is ``64K``, ``10 s`` is ``10``."""
    number = re.fullmatch(r"([\d.,]+) *([KMGT]?)(?:i?B)?(?: ?s)?", str(value).strip("`"))
    return number[1].replace(",", "") + number[2] if number else str(value)


@pytest.mark.parametrize("page", PAGES)
def test_defaults_are_those_of_the_roles(page: str) -> None:
    known = _variables()
    stated = [(name, value) for name, value in _stated_defaults(page) if known.get(name) is not None]
    wrong = [(name, value, known[name]) for name, value in stated if _plain(value) != _plain(known[name])]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_options_of_benchmarks_exist(page: str) -> None:
    missing = []
    for line, _ in _lines(page):
        for script, options in re.findall(r"(benchmarks/\w+\.py)([^`]*)", line):
            source = (REPOSITORY / script).read_text()
            missing += [f"{script} {o}" for o in re.findall(r"--[\w-]+", options) if f'"{o}"' not in source]
    assert missing == []


def _routes() -> dict[str, set[str]]:
    """Methods of each path that the router answers. Which paths there are depends on no collaborator."""
    apis = (Admin, Dashboard, Health, OllamaApi, OllamaModels, OpenAiApi, ResourcesApi)
    routes = [route for api in apis for route in object.__new__(api).routes]
    return {_shape(route.path): (route.methods or set()) - {"HEAD"} for route in routes}


def _shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


@pytest.mark.parametrize("page", PAGES)
def test_paths_of_the_router_are_answered(page: str) -> None:
    routes = _routes()
    assert len(routes) > 20
    code = re.sub(r"https?://[^/\s`]+", " ", _code(page))
    named = re.findall(rf"(?:\b(GET|POST|DELETE) )?(?<![\w./-])(/(?:{ROUTER_PATHS})\b[\w/{{}}:]*)", code)
    unknown = {
        f"{method} {path}".strip()
        for method, path in named
        if not (
            any(route.startswith(f"{path}/") for route in routes)
            or (_shape(path) in routes and (not method or method in routes[_shape(path)]))
        )
    }
    assert unknown == set()


@pytest.mark.parametrize("page", PAGES)
def test_metrics_headers_and_environment_variables_are_those_of_the_code(page: str) -> None:
    folders = [REPOSITORY / folder for folder in ("harness", "roles")]
    source = "\n".join(
        p.read_text() for f in folders for p in f.rglob("*") if p.suffix in (".py", ".yml", ".j2")
    )
    code = _code(page)
    named = {name.removesuffix("_total") for name in re.findall(r"\bllama_router_[a-z_]+", code)}
    named = {name for name in named if not name.endswith("_state")}  # put together of parts
    named |= set(re.findall(r"\bx-llama-[a-z-]+", code))
    named |= set(re.findall(r"\b(?:HARNESS|LLAMA_HARNESS|ROUTER|SOLLOL|OLLAMA)_[A-Z_]+", code))
    assert {name for name in named if not re.search(rf"{name}(?![\w-])", source)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_profiles_and_imports_in_examples_are_good(page: str) -> None:
    for language, text in _blocks(page):
        if re.search(r"^trials:", text, re.MULTILINE):
            assert parse_profile(Path(page), text).trials
        for line in re.findall(r"^from harness.* import .*$", text, re.MULTILINE) if language != "sh" else ():
            exec(line, {})  # noqa: S102 - an import, as the page tells its reader to write it
