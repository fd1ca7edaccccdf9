"""Unpack one folder of a source archive safely, and pack a folder so that equal trees give equal bytes."""

import gzip
import hashlib
import stat
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

from harness.errors import HarnessError

# 1980-01-01: the oldest time that every archive format can hold.
PACKED_TIME = 315532800


def unpack_folder(archive: Path, folder: str, target: Path) -> None:
    """Unpack ``folder`` of a tar archive or wheel into ``target``.

    Args:
        folder: path inside the archive. In an sdist it is below the one top folder. Empty means: the folder,
            at whatever depth, whose CMakeLists.txt is highest.

    Raises:
        HarnessError: not an archive, no such folder, or a member that would land elsewhere.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as source:
                _unpack_zip(source, _root(source.namelist(), folder, archive), target)
        else:
            with tarfile.open(archive) as source:
                _unpack_tar(source, _root(source.getnames(), folder, archive), target)
    except tarfile.FilterError as error:
        raise HarnessError(f"{archive.name} is refused: {error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, gzip.BadGzipFile) as error:
        raise HarnessError(f"{archive.name} is no archive that can be unpacked: {error}") from error


def _root(names: list[str], folder: str, archive: Path) -> PurePosixPath:
    """Path of ``folder`` as the archive's members spell it."""
    makefiles = sorted(
        (PurePosixPath(name).parent for name in names if PurePosixPath(name).name == "CMakeLists.txt"),
        key=lambda path: len(path.parts),
    )
    wanted = PurePosixPath(folder).parts
    for parent in makefiles:
        if not wanted or parent.parts in (wanted, (*parent.parts[:1], *wanted)):
            return parent
    raise HarnessError(f"{archive.name} holds no llama.cpp source in {folder or 'any folder'}")


def _inside(name: str, root: PurePosixPath, archive: str) -> PurePosixPath | None:
    """Path below ``root``; None for members that are elsewhere."""
    path = PurePosixPath(name)
    if not path.is_relative_to(root):
        return None
    below = path.relative_to(root)
    if ".." in below.parts:
        raise HarnessError(f"{archive} is refused: member '{name}' climbs out of its folder")
    return below


def _unpack_tar(source: tarfile.TarFile, root: PurePosixPath, target: Path) -> None:
    for member in source.getmembers():
        below = _inside(member.name, root, str(source.name))
        if below is None or below == PurePosixPath():
            continue
        link = member.linkname
        if member.islnk():
            link = str(_inside(link, root, str(source.name)) or "/outside")
        source.extract(member.replace(name=str(below), linkname=link, deep=False), target, filter="data")


def _unpack_zip(source: zipfile.ZipFile, root: PurePosixPath, target: Path) -> None:
    for entry in source.infolist():
        below = _inside(entry.filename, root, str(source.filename))
        if below is None or entry.is_dir():
            continue
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise HarnessError(f"{source.filename} is refused: member '{entry.filename}' is no plain file")
        path = target / below
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(entry))
        if mode & 0o111:
            path.chmod(0o755)


def pack_folder(folder: Path, target: Path) -> str:
    """Pack a folder's contents into a gzipped tar that depends on nothing but them; its sha256.

    Names are sorted, owners and times fixed, and modes reduced to executable or not.
    """
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as packed,
    ):
        for path in sorted(folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            member = packed.gettarinfo(path, arcname=str(path.relative_to(folder)))
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mtime = PACKED_TIME
            member.mode = 0o755 if member.mode & 0o111 else 0o644
            with path.open("rb") if member.isreg() else nullcontext() as content:
                packed.addfile(member, content)
    return file_sha256(target)


def file_sha256(path: Path) -> str:
    """Sha256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
