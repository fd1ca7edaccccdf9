"""The release catalogue: what is pinned, and what a wrong entry says."""

from pathlib import Path

import pytest
import yaml
from harness.errors import HarnessError
from harness.llama.releases.catalogue import CATALOGUE, Release, SourceKind, catalogue, read_catalogue
from harness.settings import REPOSITORY


def test_the_releases_the_project_speaks_of_are_there() -> None:
    assert [release.build for release in catalogue().releases] == [
        6666, 6689, 6743, 6751, 6792, 10566, 11434, 11549
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "protocol", "target", "kinds"),
    [
        (6666, "2.0.0", "rpc-server", ["pypi", "archive"]),
        (6689, "3.0.0", "rpc-server", ["git", "archive"]),
        (6743, "3.0.0", "rpc-server", ["git", "archive"]),
        (6751, "3.0.0", "rpc-server", ["pypi", "archive"]),
        (10566, "5.1.0", "ggml-rpc-server", ["pypi", "archive"]),
        (11434, "7.0.0", "ggml-rpc-server", ["pypi", "archive"]),
        (11549, "8.0.0", "ggml-rpc-server", ["pypi", "archive"]),
    ],
)
def test_a_release_says_what_it_speaks_and_where_it_is(
    build: int, protocol: str, target: str, kinds: list[str]
) -> None:
    release = catalogue().release(build)
    assert (release.protocol, release.rpc_target) == (protocol, target)
    assert release.sources.kinds == [SourceKind(kind) for kind in kinds]


RPC, DISCARD, RECOMPUTE = "CVE-2026-34159", "CVE-2026-21869", "GHSA-2phh-px2f-2qmx"


@pytest.mark.parametrize(
    ("build", "ids"),
    [
        (6666, [RPC, DISCARD]),
        (6743, [RPC, DISCARD]),
        (6792, [RPC, DISCARD]),
        (10566, [RECOMPUTE]),
        (11434, []),
        (11549, []),
    ],
)
def test_remote_code_execution_that_a_newer_release_fixed_is_refused(build: int, ids: list[str]) -> None:
    assert [issue.id for issue in catalogue().refusals(build)] == ids
    assert catalogue().admit(build, accepted=ids).build == build
    for missing in ids:
        with pytest.raises(
            HarnessError, match=rf"\({missing}\): pin 11549, or accept .*: \[{', '.join(ids)}\]"
        ):
            catalogue().admit(build, accepted=[name for name in ids if name != missing])


@pytest.mark.parametrize("release", catalogue().releases, ids=lambda release: str(release.build))
def test_what_no_release_has_fixed_is_said_of_each(release: Release) -> None:
    issues = {issue.id: issue for issue in catalogue().known_issues(release.build)}
    assert "firewalls" in issues["upstream-25289"].text


def test_accepted_issue_that_nobody_knows_is_named() -> None:
    with pytest.raises(HarnessError, match=r"no issue 'CVE-1' is known; there are CVE-2026-34159, "):
        catalogue().admit(11549, accepted=["CVE-1"])


@pytest.mark.parametrize("inventory", ["lab", "example"])
def test_pin_of_a_shipped_inventory_is_the_newest_without_a_fixed_vulnerability(inventory: str) -> None:
    variables = yaml.safe_load(
        (REPOSITORY / "inventories" / inventory / "group_vars" / "all.yml").read_text()
    )
    assert variables["llama_cpp_build"] == max(
        release.build for release in catalogue().releases if not catalogue().refusals(release.build)
    )
    assert "llama_cpp_accepted_issues" not in variables


def test_memory_flag_of_rpc_server_is_gone_at_6792() -> None:
    assert "-m" in catalogue().release(6751).flags.rpc_server
    assert "-m" not in catalogue().release(6792).flags.rpc_server


def test_a_newer_release_keeps_to_the_plan_and_prints_its_load_lines() -> None:
    assert catalogue().release(11434).server_args[2:6] == ("-fit", "off", "-lv", "4")
    assert "-fit" not in catalogue().release(6751).server_args


def test_the_commit_is_shown_as_llama_server_prints_it() -> None:
    assert catalogue().release(6743).short_commit == "c7be9febc"
    assert catalogue().release(11434).short_commit == "unknown"


def test_an_unknown_build_names_those_that_are_known() -> None:
    with pytest.raises(HarnessError, match=r"llama\.cpp 9999 is not in the release catalogue.*6666, 6689"):
        catalogue().release(9999)


def written(folder: Path, change: object) -> Path:
    data = yaml.safe_load(CATALOGUE.read_text())
    assert callable(change)
    change(data)
    path = folder / "catalogue.yml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_an_unknown_field_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, lambda data: data["releases"][0].update(protocl="3.0.0"))
    with pytest.raises(HarnessError, match=r"catalogue\.yml: releases\.0\.protocl"):
        read_catalogue(path)


def test_a_checksum_that_is_none_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, lambda data: data["releases"][3]["sources"]["pypi"].update(sha256="6a66"))
    with pytest.raises(HarnessError, match=r"releases\.3\.sources\.pypi\.sha256"):
        read_catalogue(path)


def test_a_tag_without_a_whole_commit_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, lambda data: data["releases"][1].update(commit="f3928396"))
    with pytest.raises(HarnessError, match="build 6689: a source 'git' needs all 40 digits of its commit"):
        read_catalogue(path)


def test_a_build_listed_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, lambda data: data["releases"].append(data["releases"][0]))
    with pytest.raises(HarnessError, match="build 6666 is there twice"):
        read_catalogue(path)


def test_issue_that_names_no_release_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, lambda data: data["issues"][0].update(fixed_in=7000))
    with pytest.raises(HarnessError, match=r"CVE-2026-34159 names build 7000, which is no release"):
        read_catalogue(path)


def test_issue_with_the_name_of_another_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, lambda data: data["issues"][1].update(aliases=["CVE-2026-34159"]))
    with pytest.raises(HarnessError, match="issue CVE-2026-34159 is there twice"):
        read_catalogue(path)


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.yml"
    path.write_text("releases: [")
    with pytest.raises(HarnessError, match="cannot be read"):
        read_catalogue(path)
