"""The catalogue has every advisory that is known of, with the releases that it concerns."""

from pathlib import Path

import pytest
import yaml
from harness.llama.releases.catalogue import KnownIssue, Reach, Severity, catalogue
from harness.settings import REPOSITORY

ADVISORIES = yaml.safe_load((REPOSITORY / "tests" / "data" / "advisories.yml").read_text())
ISSUES = catalogue().issues


@pytest.mark.parametrize("advisory", ADVISORIES, ids=lambda advisory: advisory["id"])
def test_advisory_is_in_the_catalogue_with_its_releases(advisory: dict[str, object]) -> None:
    issue = catalogue().issue(str(advisory["id"]))
    assert issue, "add it to harness/llama/releases/catalogue.yml"
    concerned = {release.build: issue.concerns(release.build) for release in catalogue().releases}
    assert all(concerned[build] for build in advisory["affects"])  # type: ignore[attr-defined]
    assert not any(concerned[build] for build in advisory["spares"])  # type: ignore[attr-defined]


def test_vulnerability_of_the_catalogue_is_an_advisory() -> None:
    listed = {advisory["id"] for advisory in ADVISORIES}
    assert not [
        issue.id
        for issue in ISSUES
        if issue.reach is not Reach.CHANCE and not listed & {issue.id, *issue.aliases}
    ]


@pytest.mark.parametrize("issue", ISSUES, ids=lambda issue: issue.id)
def test_issue_that_somebody_can_bring_about_says_what_is_done_against_it(issue: KnownIssue) -> None:
    assert issue.mitigation or issue.reach is Reach.CHANCE
    assert issue.severity is Severity.CRITICAL or not issue.remote_code_execution


def test_worst_issues_of_a_release_come_first() -> None:
    severities = [issue.severity for issue in catalogue().known_issues(6751)]
    assert severities[0] is Severity.CRITICAL
    assert severities == sorted(severities, key=list(Severity).index)


def test_flags_that_make_an_issue_reachable_are_named() -> None:
    named = {flag: issue.id for issue in ISSUES for flag in issue.refused_flags}
    assert named == {"--context-shift": "CVE-2026-21869"}  # --sleep-idle-seconds is refused for every release


def test_pages_for_people_name_the_file() -> None:
    assert "advisories.yml" in (Path(REPOSITORY) / "CONTRIBUTING.md").read_text()
