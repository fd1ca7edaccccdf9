"""Sources are fetched whole, checked against their pin, and never run."""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import IO

import pytest
from harness.errors import HarnessError
from harness.llama.releases import index
from harness.llama.releases.catalogue import Release, SourceKind, catalogue
from harness.llama.releases.index import IndexSettings, fetch_distribution, parse_pip_config, settings_from
from harness.llama.releases.source import SourceChoice, fetch_source
from harness.settings import REPOSITORY

SOURCE = {
    "CMakeLists.txt": b"project(llama.cpp)\n",
    "ggml/CMakeLists.txt": b"",
    "src/llama.cpp": b"// code\n",
}
POISON = (
    b"import pathlib, sys\npathlib.Path(__file__).with_name('RAN').touch()\nsys.exit('setup.py was run')\n"
)


def tarball(
    path: Path, members: dict[str, bytes], mtime: int = 0, links: dict[str, str] | None = None
) -> str:
    """Write a gzipped tar of these members; its sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            tar.addfile(info, io.BytesIO(content))
        for name, to in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            tar.addfile(info)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sdist(path: Path, more: dict[str, bytes] | None = None, **options: object) -> str:
    """An sdist of project 'cppsource' that must not be built."""
    members = {"cppsource-1.0/setup.py": POISON, "cppsource-1.0/README": b"x"}
    members |= {f"cppsource-1.0/vendor/llama.cpp/{name}": content for name, content in SOURCE.items()}
    return tarball(path, members | (more or {}), **options)  # type: ignore[arg-type]


def release_from(sha256: str, kind: str = "sdist", folder: str = "vendor/llama.cpp") -> Release:
    data = catalogue().release(6751).model_dump()
    data["sources"] = {
        "pypi": {
            "project": "cppsource", "version": "1.0", "kind": kind, "sha256": sha256, "folder": folder,
        }
    }  # fmt: skip
    return Release.model_validate(data)


class Index:
    """A package index on the loopback, and the files it serves."""

    def __init__(self, root: Path, url: str) -> None:
        self.files = root / "simple" / "cppsource"
        self.files.mkdir(parents=True)
        self.url = f"{url}/simple/"

    def publish(self) -> None:
        links = "".join(f'<a href="{file.name}">{file.name}</a>' for file in sorted(self.files.iterdir()))
        (self.files / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    root = tmp_path / "index"
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    Thread(target=server.serve_forever, daemon=True).start()
    served = Index(root, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(index, "pip_settings", lambda: IndexSettings(index_urls=(served.url,)))
    yield served
    server.shutdown()
    server.server_close()


def unpacked(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {
            member.name: file.read()
            for member in tar.getmembers()
            if (file := tar.extractfile(member)) is not None
        }


def test_archive_of_which_only_half_comes_is_one_line_and_leaves_nothing(
    local_index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = local_index.files / "cppsource-1.0.tar.gz"
    sha256 = sdist(archive)
    local_index.publish()

    def half(self: Quiet, source: IO[bytes], outputfile: IO[bytes]) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.path.endswith(".gz") else content)
        self.close_connection = True

    monkeypatch.setattr(Quiet, "copyfile", half)
    with pytest.raises(
        HarnessError, match=r"cppsource 1\.0: no answer from the package indexes .*: "
    ) as caught:
        fetch_source(release_from(sha256), SourceChoice(), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "sources").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(index, "pip_settings", lambda: IndexSettings(index_urls=(local_index.url,)))
    assert fetch_source(release_from(sha256), SourceChoice(), tmp_path / "cache").fetched


def test_only_the_named_folder_of_an_sdist_is_taken_and_nothing_runs(
    local_index: Index, tmp_path: Path
) -> None:
    sha256 = sdist(local_index.files / "cppsource-1.0.tar.gz")
    local_index.publish()
    got = fetch_source(release_from(sha256), SourceChoice(), tmp_path / "cache")
    assert unpacked(got.path) == SOURCE
    assert got.origin == {"kind": "pypi", "name": "cppsource==1.0", "sha256": sha256}
    assert not list(tmp_path.rglob("RAN"))


def test_the_folder_of_a_wheel_is_taken(local_index: Index, tmp_path: Path) -> None:
    path = local_index.files / "cppsource-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("cppsource/__init__.py", "")
        for name, content in SOURCE.items():
            wheel.writestr(f"vendor/llama.cpp/{name}", content)
    sdist(local_index.files / "cppsource-1.0.tar.gz")
    local_index.publish()
    release = release_from(hashlib.sha256(path.read_bytes()).hexdigest(), kind="wheel")
    assert unpacked(fetch_source(release, SourceChoice(), tmp_path / "cache").path) == SOURCE


def test_a_second_fetch_is_served_from_the_cache(local_index: Index, tmp_path: Path) -> None:
    archive = local_index.files / "cppsource-1.0.tar.gz"
    release = release_from(sdist(archive))
    local_index.publish()
    first = fetch_source(release, SourceChoice(), tmp_path / "cache")
    archive.unlink()
    second = fetch_source(release, SourceChoice(), tmp_path / "cache")
    assert (first.fetched, second.fetched, second.sha256) == (True, False, first.sha256)


def test_a_cache_file_that_was_cut_is_fetched_again(local_index: Index, tmp_path: Path) -> None:
    release = release_from(sdist(local_index.files / "cppsource-1.0.tar.gz"))
    local_index.publish()
    first = fetch_source(release, SourceChoice(), tmp_path / "cache")
    first.path.write_bytes(first.path.read_bytes()[:-20])
    second = fetch_source(release, SourceChoice(), tmp_path / "cache")
    assert second.fetched
    assert unpacked(second.path) == SOURCE


def test_equal_trees_pack_to_equal_bytes(tmp_path: Path) -> None:
    got = []
    for mtime in (1, 1_700_000_000):
        archive = tmp_path / f"{mtime}.tar.gz"
        choice = SourceChoice(SourceKind.ARCHIVE, archive=archive, archive_sha256=sdist(archive, mtime=mtime))
        got.append(fetch_source(catalogue().release(6743), choice, tmp_path / str(mtime)).sha256)
    assert got[0] == got[1]


def test_a_wrong_checksum_names_both_and_keeps_nothing(local_index: Index, tmp_path: Path) -> None:
    seen = sdist(local_index.files / "cppsource-1.0.tar.gz")
    local_index.publish()
    with pytest.raises(HarnessError, match=f"cppsource-1.0.tar.gz.*has sha256 {seen}, expected {'0' * 64}"):
        fetch_source(release_from("0" * 64), SourceChoice(), tmp_path / "cache")
    assert list((tmp_path / "cache" / "sources").iterdir()) == []


def test_a_release_the_index_does_not_have_is_named(local_index: Index, tmp_path: Path) -> None:
    local_index.publish()
    with pytest.raises(HarnessError, match=r"cppsource 1\.0 has no sdist in the package indexes http://127"):
        fetch_source(release_from("0" * 64), SourceChoice(), tmp_path / "cache")


def test_an_index_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    settings = IndexSettings(index_urls=("http://me:secret@127.0.0.1:9/simple/",))
    with pytest.raises(HarnessError, match=r"cppsource 1\.0: .*127\.0\.0\.1:9/simple") as caught:
        fetch_distribution("cppsource", "1.0", "sdist", "0" * 64, tmp_path, settings)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("members", "links"),
    [
        ({"cppsource-1.0/vendor/llama.cpp/../../../../escaped": b"x"}, {}),
        ({}, {"cppsource-1.0/vendor/llama.cpp/link": "/etc/passwd"}),
        ({}, {"cppsource-1.0/vendor/llama.cpp/link": "../../outside"}),
    ],
    ids=["climbing name", "absolute link", "climbing link"],
)
def test_an_archive_that_would_write_elsewhere_is_refused(
    tmp_path: Path, members: dict[str, bytes], links: dict[str, str]
) -> None:
    archive = tmp_path / "evil.tar.gz"
    choice = SourceChoice(
        SourceKind.ARCHIVE, archive=archive, archive_sha256=sdist(archive, members, links=links)
    )
    with pytest.raises(HarnessError, match=r"is refused"):
        fetch_source(catalogue().release(6743), choice, tmp_path / "cache")
    assert not list(tmp_path.rglob("escaped"))
    assert list((tmp_path / "cache" / "sources").iterdir()) == []


def test_a_truncated_archive_is_no_archive(tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar.gz"
    sdist(whole, {"cppsource-1.0/vendor/llama.cpp/big": bytes(range(256)) * 4096})
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:2000])
    digest = hashlib.sha256(cut.read_bytes()).hexdigest()
    choice = SourceChoice(SourceKind.ARCHIVE, archive=cut, archive_sha256=digest)
    with pytest.raises(HarnessError, match=r"cut\.tar\.gz is no archive that can be unpacked"):
        fetch_source(catalogue().release(6743), choice, tmp_path / "cache")


def test_an_archive_without_llama_cpp_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "other.tar.gz"
    sha256 = tarball(archive, {"other/CMakeLists.txt": b"", "other/main.c": b""})
    choice = SourceChoice(SourceKind.ARCHIVE, archive=archive, archive_sha256=sha256)
    with pytest.raises(HarnessError, match=r"other\.tar\.gz does not hold llama\.cpp's source"):
        fetch_source(catalogue().release(6743), choice, tmp_path / "cache")


def test_a_missing_source_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"6743 has no source 'pypi'; it has: git, archive"):
        fetch_source(catalogue().release(6743), SourceChoice(SourceKind.PYPI), tmp_path)


def test_an_archive_needs_its_checksum(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="needs the path of an archive and its sha256"):
        fetch_source(catalogue().release(6743), SourceChoice(SourceKind.ARCHIVE), tmp_path)


def test_a_cache_that_cannot_be_written_says_where_and_what_is_free(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    archive = tmp_path / "source.tar.gz"
    choice = SourceChoice(SourceKind.ARCHIVE, archive=archive, archive_sha256=sdist(archive))
    with pytest.raises(HarnessError, match=r"cannot keep its source in .*cache/sources: .* GiB free"):
        fetch_source(catalogue().release(6743), choice, tmp_path / "cache")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with llama.cpp's shape and two tags."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for name, content in SOURCE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    for tag in ("b6742", "b6743"):
        (folder / "src" / "llama.cpp").write_bytes(f"// {tag}\n".encode())
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", tag)
        git(folder, "tag", tag)
    return folder


def pinned(repository: Path, tag: str, at: str) -> tuple[Release, SourceChoice]:
    data = catalogue().release(6743).model_dump()
    data |= {"commit": git(repository, "rev-parse", at), "sources": {"git": {"tag": tag}}}
    return Release.model_validate(data), SourceChoice(git_url=repository.as_uri())


def test_the_pinned_tag_is_taken_from_git(repository: Path, tmp_path: Path) -> None:
    release, choice = pinned(repository, "b6742", "b6742")
    got = fetch_source(release, choice, tmp_path / "cache")
    assert unpacked(got.path) == SOURCE | {"src/llama.cpp": b"// b6742\n"}
    assert got.origin["commit"] == release.commit


def test_a_tag_that_moved_is_refused(repository: Path, tmp_path: Path) -> None:
    release, choice = pinned(repository, "b6743", "b6742")
    with pytest.raises(HarnessError, match=f"tag b6743 .* is commit .*expected {release.commit}"):
        fetch_source(release, choice, tmp_path / "cache")


def test_a_tag_that_is_not_there_is_named(repository: Path, tmp_path: Path) -> None:
    release, choice = pinned(repository, "b1", "b6742")
    with pytest.raises(HarnessError, match="git cannot fetch tag b1: "):
        fetch_source(release, choice, tmp_path / "cache")


def test_pips_variables_win_over_its_files() -> None:
    listing = (
        "global.index-url='https://files/simple'\n:env:.index-url='https://env/simple'\ninstall.pre='1'\n"
    )
    assert parse_pip_config(listing) == {"index-url": "https://env/simple"}


def test_settings_hold_every_place_pip_would_look_in() -> None:
    values = {
        "extra-index-url": "https://a/simple\nhttps://b/simple",
        "find-links": "/wheels",
        "cert": "/ca.pem",
    }
    settings = settings_from(values)
    assert settings.index_urls == ("https://pypi.org/simple/", "https://a/simple", "https://b/simple")
    assert (settings.find_links, settings.certificates) == (("/wheels",), Path("/ca.pem"))
    assert settings_from(values | {"no-index": "true"}).index_urls == ()


@pytest.fixture
def fetch_command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "harness.llama.releases",
            "fetch",
            *arguments,
            "--cache",
            str(tmp_path / "cache"),
        ]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    return run


def test_the_command_prints_what_it_fetched(
    tmp_path: Path, fetch_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    archive = tmp_path / "source.tar.gz"
    sha256 = sdist(archive)
    done = fetch_command("6743", "--source", "archive", "--archive", str(archive), "--archive-sha256", sha256)
    got = json.loads(done.stdout)
    assert got["fetched"] is True
    assert gzip.decompress(Path(got["path"]).read_bytes())


def test_the_command_fails_in_one_line(
    fetch_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = fetch_command("1234")
    assert done.returncode == 1
    assert done.stderr.startswith("harness: llama.cpp 1234 is not in the release catalogue")
    assert done.stderr.count("\n") == 1
