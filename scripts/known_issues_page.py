#!/usr/bin/env python3
"""Generate docs/known-issues.md from the catalogue of llama.cpp releases.

Run ``python scripts/known_issues_page.py`` after a change of ``issues`` in the catalogue.
"""

from pathlib import Path

from harness.llama.releases.catalogue import KnownIssue, Reach, Severity, catalogue

PAGE = Path(__file__).resolve().parents[1] / "docs" / "known-issues.md"
_HEAD = """\
<!-- Generated from harness/llama/releases/catalogue.yml by scripts/known_issues_page.py. Do not edit. -->
# Known issues of llama.cpp's releases

This page is for the person who pins a llama.cpp release. `harness release show BUILD` prints the part of one
release.

Each table lists what one group of people can bring about, and what the harness does against it. `upstream-N`
is issue or pull request N of llama.cpp. A release with a remote code execution that a newer release has fixed
is deployed only if `llama_cpp_accepted_issues` names it.
"""
_TABLE = """\
| Issue | Severity | Releases | Fixed in | What it is | What the harness does |
|---|---|---|---|---|---|
"""
_WHO = {
    Reach.BACKEND: "Who can connect to a backend\n\nThe firewall admits the head node alone.",
    Reach.REQUEST: "Who may send a request\n\nThe holder of a user's key.",
    Reach.MODEL: "Who makes a model file\n\nLoad files of sources that you trust.",
    Reach.CHANCE: "Nobody: it happens",
}


def markdown() -> str:
    """The whole page."""
    return _HEAD + "".join(f"\n## {title}\n\n{_TABLE}{_rows(reach)}" for reach, title in _WHO.items())


def _rows(reach: Reach) -> str:
    issues = [issue for issue in catalogue().issues if issue.reach is reach]
    return "".join(_row(issue) for severity in Severity for issue in issues if issue.severity is severity)


def _row(issue: KnownIssue) -> str:
    names = "<br>".join([f"`{issue.id}`", *issue.aliases])
    severity = issue.severity + (", remote code execution" if issue.remote_code_execution else "")
    builds = [release.build for release in catalogue().releases if issue.concerns(release.build)]
    releases = f"{builds[0]} to {builds[-1]}" if len(builds) > 1 else str(builds[0])
    fixed, here = issue.fixed_in or "not fixed", issue.mitigation or "nothing"
    cells = (names, severity, releases, fixed, issue.text, here)
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(markdown())


if __name__ == "__main__":
    main()
