"""Bodies: small ones in memory, large ones and many in files that nobody else sees."""

import os
from pathlib import Path

import pytest
from harness.router.errors import RouterError
from harness.router.http import bodies
from harness.router.http.bodies import Body, BodyStore, FromBody

MIB = 1024 * 1024


class Budget:
    def __init__(self) -> None:
        self.used = 0

    def take(self, size: int) -> None:
        self.used += size


async def filled(store: BodyStore, budget: Budget, data: bytes) -> Body:
    body = Body(store, budget.take)
    for start in range(0, len(data), 65536):
        await body.append(data[start : start + 65536])
    await body.complete()
    return body


async def sent(body: Body) -> bytes:
    payload = body.payload()
    return payload if isinstance(payload, bytes) else b"".join([chunk async for chunk in payload])


def files_without_name(folder: Path) -> int:
    """Open files of this process in a folder that has none."""
    assert list(folder.iterdir()) == []
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(link.is_relative_to(folder) for link in links)


@pytest.mark.parametrize("size", [0, 10, MIB - 1, MIB, 3 * MIB + 7])
async def test_body_comes_back_as_often_as_it_is_sent(tmp_path: Path, size: int) -> None:
    store, budget, data = BodyStore(tmp_path), Budget(), os.urandom(size)
    body = await filled(store, budget, data)
    assert [await body.read(), await sent(body), await sent(body)] == [data] * 3
    assert (body.size, budget.used) == (size, size)
    body.close()
    assert (budget.used, store.memory_bytes) == (0, 0)


async def test_large_body_is_in_a_file_without_a_name(tmp_path: Path) -> None:
    store = BodyStore(tmp_path)
    body = await filled(store, Budget(), b"x" * 2 * MIB)
    assert store.memory_bytes == 0
    assert files_without_name(tmp_path) == 1
    body.close()
    assert files_without_name(tmp_path) == 0


async def test_body_is_read_on_from_anywhere(tmp_path: Path) -> None:
    data = os.urandom(MIB + 5000)
    body = Body(BodyStore(tmp_path), Budget().take)
    for start in range(0, len(data), 4000):
        await body.append(data[start : start + 4000])
    read = b""
    while piece := await body.read_on(len(read)):
        read += piece
    assert read == data
    body.close()


async def test_many_small_bodies_go_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_MEMORY_BYTES", 1000)
    store = BodyStore(tmp_path)
    several = [await filled(store, Budget(), b"x" * 400) for _ in range(20)]
    assert store.memory_bytes <= 1000
    assert [await body.read() for body in several] == [b"x" * 400] * 20
    for body in several:
        body.close()


async def test_disk_without_space_refuses_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    monkeypatch.setattr(BodyStore, "file", lambda self: full.open("r+b", buffering=0))
    store, budget = BodyStore(tmp_path), Budget()
    body = await filled(store, budget, b"x" * (MIB - 1))
    with pytest.raises(RouterError, match="No space left") as refused:
        await body.append(b"yy")
    assert (refused.value.status, refused.value.error_class) == (503, "bodies_full")
    assert await body.read_on(MIB - 10) == b"x" * 9
    assert (body.size, budget.used, store.memory_bytes) == (MIB - 1, MIB - 1, MIB - 1)


async def test_body_that_is_closed_is_not_read_from_another_file(tmp_path: Path) -> None:
    body = await filled(BodyStore(tmp_path), Budget(), b"x" * 2 * MIB)
    payload = body.payload()
    assert not isinstance(payload, bytes)
    assert await anext(payload)
    body.close()
    with pytest.raises(ValueError, match="closed"):
        [chunk async for chunk in payload]


@pytest.mark.parametrize(("size", "made"), [(10, 1), (2 * MIB, 2)], ids=["small", "large"])
async def test_what_is_made_of_a_large_body_is_not_kept(tmp_path: Path, size: int, made: int) -> None:
    body = await filled(BodyStore(tmp_path), Budget(), b"x" * size)
    makes: list[int] = []

    async def make(data: bytes) -> int:
        makes.append(len(data))
        return len(data)

    value = FromBody(body, make)
    assert [await value.get(), await value.get()] == [size, size]
    assert len(makes) == made
    body.close()
