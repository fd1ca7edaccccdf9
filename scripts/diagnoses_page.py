#!/usr/bin/env python3
"""Writes docs/diagnoses.md from its template, the rules and the kinds of lines.

Run ``python scripts/diagnoses_page.py`` after a change of any of them.
"""

from collections.abc import Iterator
from pathlib import Path

from harness.diagnosis.rules import RULES, Rule
from harness.diagnosis.scanner import KINDS

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEMPLATE = DOCS / "templates" / "diagnoses.md.in"
PAGE = DOCS / "diagnoses.md"


def markdown() -> str:
    """The whole page."""
    page = TEMPLATE.read_text().replace("<!-- rules -->", "\n".join(_rows()))
    return page.replace("<!-- lines -->\n", "".join(_kinds()))


def what_decides(rule: Rule) -> str:
    """A rule's condition and the lines it asks for, in words."""
    condition = " ".join((rule.when.__doc__ or "").split())
    lines = " or ".join(f'"{kind.name}"' for kind in rule.lines)
    if not lines:
        return condition
    requirement = f"has {lines}{', before it serves' if rule.superseded else ''}"
    return f"{condition}; its log {requirement}" if condition else f"Its log {requirement}"


def _rows() -> Iterator[str]:
    for number, rule in enumerate(RULES, 1):
        yield (
            f"| {number} | `{rule.failure_class}` | {what_decides(rule)} | {rule.process or 'both'} "
            f"| {rule.confidence} | {rule.advice} |"
        )


def _kinds() -> Iterator[str]:
    for kind in KINDS:
        patterns = "".join(f"- `{pattern.pattern}`\n" for pattern in kind.patterns)
        exception = f"- but not `{kind.unless.pattern}`\n" if kind.unless else ""
        title = kind.name[0].upper() + kind.name[1:]
        yield f"\n### {title}\n\nSuch a line says that {kind.meaning}.\n\n{patterns}{exception}"


if __name__ == "__main__":
    PAGE.write_text(markdown())
