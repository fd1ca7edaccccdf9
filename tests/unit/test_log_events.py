"""docs/log-events.md lists the events that the router and the node monitor log, with levels and fields."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "log-events.md"
ROUTER = REPOSITORY / "harness" / "router"
PARTS = {
    "router": sorted(ROUTER.glob("*.py")),
    **{folder.name: sorted(folder.rglob("*.py")) for folder in sorted(ROUTER.iterdir()) if folder.is_dir()},
    "monitor": sorted((REPOSITORY / "harness" / "monitor").rglob("*.py")),
}
NOT_FIELDS = {"level", "traceback_of"}


@dataclass
class Event:
    """One event, of the page or of the code."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    more_fields: bool = False
    """The code adds fields from a dictionary."""


def logged(part: str) -> dict[str, Event]:
    """The events of a part of the code, from its calls of ``log`` and ``log_debug``."""
    events: dict[str, Event] = defaultdict(Event)
    for path in PARTS[part]:
        for call in _calls(path):
            name = call.args[0]
            assert isinstance(name, ast.Constant), f"{path}:{call.lineno}: the event is not a constant"
            event = events[name.value]
            level = next((ast.unparse(k.value) for k in call.keywords if k.arg == "level"), "logging.INFO")
            debug = ast.unparse(call.func) == "log_debug"
            event.levels.add("debug" if debug else level.removeprefix("logging.").lower())
            event.fields |= {k.arg for k in call.keywords if k.arg and k.arg not in NOT_FIELDS}
            event.more_fields |= any(k.arg is None for k in call.keywords)
    return events


def _calls(path: Path) -> Iterator[ast.Call]:
    functions = {"log", "log_debug"}
    tree = ast.parse(path.read_text())
    for definition in ast.walk(tree):
        if isinstance(definition, ast.FunctionDef) and definition.name in functions:
            definition.body = []  # one of the two calls the other
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            yield node


def listed() -> dict[str, Event]:
    """The events of the page."""
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \|([^|]*)\| [^|]+ \|$", PAGE.read_text(), re.MULTILINE)
    return {name: Event({level}, set(re.findall(r"`(\w+)`", fields))) for name, level, fields in rows}


@pytest.mark.parametrize("part", PARTS)
def test_events_of_the_code_are_tokens_that_the_page_lists(part: str) -> None:
    page = listed()
    for name, event in logged(part).items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), name
        assert name in page, f"docs/log-events.md does not list {name}"
        assert page[name].levels == event.levels, name
        assert event.fields <= page[name].fields, name
        assert event.more_fields or event.fields == page[name].fields, name


def test_page_lists_only_events_of_the_code() -> None:
    assert set(listed()) == {name for part in PARTS for name in logged(part)}
