"""What the machines' image is made of, and its name."""

from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.lab.image import apt_sources, declared_packages, image_name
from harness.settings import REPOSITORY

TARGETS = """\
http://mirror.example/debian/|bookworm|main|/usr/share/keyrings/debian.gpg
http://mirror.example/debian/|bookworm|contrib|/usr/share/keyrings/debian.gpg
http://mirror.example/debian/|bookworm-updates|main|$(SIGNED_BY)
http://mirror.example/debian-security/|bookworm-security|main|$(SIGNED_BY)
http://other.example/tool/|stable|main|$(SIGNED_BY)
http://mirror.example/debian/|trixie|main|$(SIGNED_BY)
"""


def test_sources_are_the_computers_own_for_its_release_with_updates_and_security() -> None:
    assert apt_sources(TARGETS, "bookworm", "bookworm") == [
        "deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian/ bookworm main contrib",
        "deb http://mirror.example/debian/ bookworm-updates main",
        "deb http://mirror.example/debian-security/ bookworm-security main",
    ]


def test_another_suite_comes_from_the_same_mirrors() -> None:
    assert apt_sources(TARGETS, "bookworm", "trixie")[1:] == [
        "deb http://mirror.example/debian/ trixie-updates main",
        "deb http://mirror.example/debian-security/ trixie-security main",
    ]


def test_a_release_without_sources_is_refused() -> None:
    with pytest.raises(HarnessError, match="no source of 'sid'"):
        apt_sources(TARGETS, "sid", "sid")


def test_the_name_follows_what_defines_the_image() -> None:
    name = image_name("debian", "bookworm", "x86_64", ["a", "b"])
    assert name == image_name("debian", "bookworm", "x86_64", ["a", "b"])
    others = [
        image_name("debian", "bookworm", "x86_64", ["a"]),
        image_name("debian", "bookworm", "aarch64", ["a", "b"]),
        image_name("ubuntu", "noble", "x86_64", ["a", "b"]),
    ]
    assert name not in others


def write_defaults(roles: Path, role: str, text: str) -> None:
    (roles / role / "defaults").mkdir(parents=True)
    (roles / role / "defaults/main.yml").write_text(text)


def test_packages_are_those_that_roles_declare_under_their_own_name(tmp_path: Path) -> None:
    write_defaults(tmp_path, "one", "---\none_packages: [nftables, git]\nother_packages: [vim]\n")
    write_defaults(tmp_path, "two", "---\ntwo_packages:\n  - git\n")
    write_defaults(tmp_path, "three", "---\n")
    assert declared_packages(tmp_path) == ["git", "nftables"]


@pytest.mark.parametrize("value", ['["{{ compiler }}"]', "git"])
def test_packages_that_cannot_be_read_without_ansible_are_refused(tmp_path: Path, value: str) -> None:
    write_defaults(tmp_path, "one", f"---\none_packages: {value}\n")
    with pytest.raises(HarnessError, match="one_packages must be a plain list"):
        declared_packages(tmp_path)


def test_the_roles_packages_can_all_be_read() -> None:
    assert "nftables" in declared_packages(REPOSITORY / "roles")
