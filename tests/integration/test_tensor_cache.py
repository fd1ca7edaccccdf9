"""The program that fills rpc-server's tensor cache, against rpc-server itself."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.llama.gguf import read_gguf
from harness.planner.device_capacity import DeviceCapacity
from harness.planner.forecast import cached_tensors
from harness.planner.placement import make_plan
from harness.settings import REPOSITORY
from tests.integration.router_stack import free_port, listens, wait_for

pytestmark = pytest.mark.integration
ME = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
SOURCE = REPOSITORY / "roles" / "llama_cpp" / "files" / "tensor_cache.c"
CACHE_TOOL = REPOSITORY / "roles" / "rpc_server" / "files" / "rpc_cache.py"


@pytest.fixture(scope="module")
def tool(llama_build: Path) -> Path:
    return llama_build / "llama-tensor-cache"


@pytest.fixture(scope="module")
def model(synthetic_1b: Path) -> Path:
    """Large enough for tensors over 10 MiB."""
    return synthetic_1b


def ranges(model: Path) -> str:
    """What one backend's cache holds of the model."""
    facts = read_gguf(model)
    plan = make_plan(facts, [DeviceCapacity("n", "127.0.0.1:1", 8 << 30)])
    return "".join(f"{t.offset} {t.bytes}\n" for t in cached_tensors(facts, plan)["n"])


def run(tool: Path, *arguments: object, stdin: bytes = b"", status: int = 0) -> str:
    argv = [str(tool), *map(str, arguments)]
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False)
    assert done.returncode == status, done.stderr
    return (done.stdout if status == 0 else done.stderr).decode()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_cache_is_filled_with_the_files_that_rpc_server_would_write(
    tool: Path, model: Path, llama_build: Path, tmp_path: Path
) -> None:
    filled, written = tmp_path / "filled", tmp_path / "written"
    run(tool, "fill", model, filled, ME, stdin=ranges(model).encode())
    load(llama_build, model, written)
    assert names(filled) == names(written / "rpc") != set()


def test_rpc_server_finds_everything_in_a_filled_cache(
    tool: Path, model: Path, llama_build: Path, tmp_path: Path
) -> None:
    (tmp_path / "rpc").mkdir()
    run(tool, "fill", model, tmp_path / "rpc", ME, stdin=ranges(model).encode())
    before = names(tmp_path / "rpc")
    log = load(llama_build, model, tmp_path)
    assert "saved to" not in log
    assert names(tmp_path / "rpc") == before


def load(llama_build: Path, model: Path, cache: Path) -> str:
    """Load the model over one rpc-server with that cache; rpc-server's log."""
    port, server_port = free_port(), free_port()
    log = cache.parent / f"{cache.name}-rpc.log"
    cache.mkdir(exist_ok=True)
    environment = os.environ | {"LLAMA_CACHE": str(cache), "HOME": str(cache)}
    with log.open("wb") as stream:
        backend = subprocess.Popen(
            [str(llama_build / "rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-c"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            restore_signals=False,
        )
    wait_for(lambda: listens(port), 10, "rpc-server")
    server = subprocess.Popen(
        [
            *(str(llama_build / "llama-server"), "-m", str(model), "--rpc", f"127.0.0.1:{port}"),
            *("--device", "RPC0", "-ngl", "99", "-c", "256", "--no-warmup", "--no-webui"),
            *("--host", "127.0.0.1", "--port", str(server_port)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: listens(server_port), 60, "llama-server")
        wait_for(lambda: loaded(server_port), 120, "the model")
    finally:
        for process in (server, backend):
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    return log.read_text(errors="replace")


def loaded(port: int) -> bool:
    time.sleep(0.1)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_second_fill_writes_nothing(tool: Path, model: Path, tmp_path: Path) -> None:
    some = "".join(ranges(model).splitlines(keepends=True)[:3]).encode()
    assert run(tool, "fill", model, tmp_path, ME, stdin=some).count(" written ") == 3
    assert run(tool, "fill", model, tmp_path, ME, stdin=some).count(" present ") == 3


def test_tensors_that_are_sent_are_the_ones_that_a_copy_gives(
    tool: Path, model: Path, tmp_path: Path
) -> None:
    some = "".join(ranges(model).splitlines(keepends=True)[:3]).encode()
    run(tool, "fill", model, tmp_path / "copy", ME, stdin=some)
    for name, argv in (
        ("node", [str(tool), "read", str(model)]),
        ("here", [sys.executable, "-m", "harness.tensor_cache.ranges", str(model)]),
    ):
        sent = subprocess.run(argv, input=some, capture_output=True, check=True).stdout
        run(tool, "store", tmp_path / name, ME, stdin=sent)
        assert names(tmp_path / name) == names(tmp_path / "copy")


def test_transfer_that_is_cut_leaves_only_whole_tensors(tool: Path, model: Path, tmp_path: Path) -> None:
    some = "".join(ranges(model).splitlines(keepends=True)[:2]).encode()
    sent = subprocess.run([str(tool), "read", str(model)], input=some, capture_output=True, check=True).stdout
    output = run(tool, "store", tmp_path, ME, stdin=sent[:-1000], status=1)
    assert "ended inside a tensor" in output
    assert [line.split()[2] for line in run(tool, "check", tmp_path).splitlines()] == ["ok"]
    assert len(list(tmp_path.iterdir())) == 1


def test_draft_of_a_killed_fill_is_dropped_by_the_next_pruning(
    tool: Path, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "rpc"
    for _ in range(20):
        fill = subprocess.Popen(
            [str(tool), "fill", str(model), str(folder), ME],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert fill.stdin
        fill.stdin.write(ranges(model).encode())
        fill.stdin.close()
        wait_for(lambda: any(name.startswith(".") for name in names(folder)), 30, "a draft")
        fill.kill()
        fill.wait(10)
        if drafts := [path for path in folder.iterdir() if path.name.startswith(".")]:
            break
    assert drafts
    prune = [sys.executable, "-IS", str(CACHE_TOOL), "prune", str(tmp_path)]
    subprocess.run(prune, check=True)
    assert all(path.exists() for path in drafts), (
        "a draft that was just written may belong to a fill that runs"
    )
    for path in drafts:
        os.utime(path, (time.time() - 3600,) * 2)
    subprocess.run(prune, check=True)
    assert not any(name.startswith(".") for name in names(folder))


def test_altered_and_cut_tensors_are_found_and_dropped(tool: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rpc"
    some = "".join(ranges(model).splitlines(keepends=True)[:4]).encode()
    run(tool, "fill", model, folder, ME, stdin=some)
    cut, altered, *whole = sorted(folder.iterdir())
    os.truncate(cut, cut.stat().st_size - 1)
    with altered.open("r+b") as file:
        file.seek(12345)
        byte = file.read(1)
        file.seek(12345)
        file.write(bytes([byte[0] ^ 1]))
    argv = [sys.executable, "-IS", str(CACHE_TOOL), "verify", str(tmp_path), "--tool", str(tool)]
    output = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert names(folder) == {path.name for path in whole}
    assert output.count("its bytes are not what its name says") == 2


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"0 99999999999999", "ends behind the file's"),
        (b"zero one", "a range is a line of two numbers"),
        (b"18446744073709551615 2", "ends behind the file's"),
    ],
)
def test_range_that_is_not_in_the_file_is_refused(
    tool: Path, model: Path, tmp_path: Path, stdin: bytes, words: str
) -> None:
    assert words in run(tool, "fill", model, tmp_path, ME, stdin=stdin, status=1)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("allowed", [1 << 20, 20 << 20], ids=["none fits", "some fit"])
def test_full_disk_is_said_and_leaves_nothing_half_written(
    tool: Path, model: Path, tmp_path: Path, allowed: int
) -> None:
    """Neither does the thread that fails nor any other."""
    limited = ["prlimit", f"--fsize={allowed}", str(tool), "fill", str(model), str(tmp_path), ME]
    ignoring = ["env", "--ignore-signal=XFSZ", *limited]
    for _ in range(4):
        done = subprocess.run(ignoring, input=ranges(model).encode(), capture_output=True, check=False)
        assert done.returncode == 1
        assert b"cannot write" in done.stderr
        assert [name for name in names(tmp_path) if name.startswith(".")] == []


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_dropped_and_not_waited_for(
    tool: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "rpc"
    folder.mkdir()
    make(folder / "00000000000000aa")
    argv = [sys.executable, "-IS", str(CACHE_TOOL), "verify", str(tmp_path), "--tool", str(tool)]
    subprocess.run(argv, check=True, timeout=10)
    assert names(folder) == set()


def test_tool_compiles_without_a_warning(tmp_path: Path) -> None:
    argv = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(tmp_path / "tool"), str(SOURCE)]
    subprocess.run(argv, check=True)
