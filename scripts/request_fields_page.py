#!/usr/bin/env python3
"""Writes the tables of docs/request-fields.md, from the table that requests are checked with.

Run ``python scripts/request_fields_page.py`` after a change of harness/router/requests/.
"""

from collections.abc import Iterator
from pathlib import Path

from harness.router.requests import grammar, pattern, schema
from harness.router.requests.fields import PASSED, REFUSED, WITHOUT_EFFECT, Api

PAGE = Path(__file__).resolve().parents[1] / "docs" / "request-fields.md"
_MARK = "<!-- From here on made by scripts/request_fields_page.py from harness/router/requests/. -->\n"
_LETTERS = {Api.CHAT: "chat", Api.COMPLETION: "completion", Api.INFILL: "infill", Api.EMBEDDING: "embedding"}


def markdown() -> str:
    """The whole page: the text up to the mark, then the tables."""
    text, mark, _ = PAGE.read_text().partition(_MARK)
    return text + mark + "".join(f"{line}\n" for line in _tables())


def _tables() -> Iterator[str]:
    yield from (
        "",
        "## Passed, within bounds",
        "",
        "| Field | For | Value | Since build |",
        "|---|---|---|---|",
    )
    for name in dict.fromkeys(name for table in PASSED.values() for name in table):
        fields = {api: table[name] for api, table in PASSED.items() if name in table}
        for kind in dict.fromkeys(str(field.kind) for field in fields.values()):
            apis = [api for api, field in fields.items() if str(field.kind) == kind]
            since = max(fields[api].since for api in apis) or ""
            yield f"| `{name}` | {', '.join(_LETTERS[api] for api in apis)} | {kind} | {since} |"
    yield from ("", "## Without effect here", "", "| Fields | Why |", "|---|---|")
    yield from (f"| `{names.replace(', ', '`, `')}` | {why} |" for names, why in WITHOUT_EFFECT.items())
    yield from ("", "## Refused", "", "| Field | Instead |", "|---|---|")
    yield from (f"| `{name}` | {way_out} |" for name, way_out in REFUSED.items())
    yield from ("", "## Bounds of schemas, patterns and grammars", "", "| Bound | Value |", "|---|---|")
    bounds = {
        "schemas in schemas": schema.DEEPEST_SCHEMA,
        "schemas in one request": schema.MOST_SCHEMAS,
        "properties of one object": schema.MOST_PROPERTIES,
        "alternatives of one `anyOf`, `oneOf` or `allOf`": schema.MOST_ALTERNATIVES,
        "values of all `enum` together": schema.MOST_VALUES,
        "bytes of a name; of the names down to it": f"{schema.LONGEST_NAME}; {schema.LONGEST_PATH}",
        "characters of all names and texts": schema.MOST_TEXT,
        "all of these counts together": schema.ALL_COUNTS,
        **{f"`{keyword}`": most for keyword, most in schema.HIGHEST_COUNTS.items()},
        "characters of a pattern": pattern.LONGEST_PATTERN,
        "characters of all patterns together": schema.ALL_PATTERNS,
        "groups in groups of a pattern": pattern.DEEPEST_PATTERN,
        "characters that a pattern has with its counts written out": pattern.MOST_POSITIONS,
        "characters of a grammar": grammar.LONGEST_GRAMMAR,
        "rules of a grammar": grammar.MOST_RULES,
        "rules below each other": grammar.DEEPEST_RULES,
        "groups in groups of a grammar": grammar.DEEPEST_GRAMMAR,
        "one count of a grammar": grammar.HIGHEST_COUNT,
        "characters that a grammar has with its counts written out": grammar.MOST_POSITIONS,
    }
    yield from (f"| {what} | {value} |" for what, value in bounds.items())


if __name__ == "__main__":
    PAGE.write_text(markdown())
