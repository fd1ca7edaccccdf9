"""What the gate's rounds prove: verdicts from data, and what is typed wrongly."""

import json
import re
from pathlib import Path

import pytest
from harness.cli import app
from harness.common.sockets import tcp_sockets
from harness.errors import HarnessError
from harness.llama.synthetic.writer import synthesise
from harness.release_proof.activity import (
    Activity,
    ProcessActivity,
    SocketActivity,
    ThreadActivity,
    sockets_of,
)
from harness.release_proof.proof import Outcome, Proof, Round, Speeds, judge_ended, judge_late, read_speeds
from typer.testing import CliRunner

GOOD = Speeds(prompt_tokens_per_s=118.2, decode_tokens_per_s=51.26)


def look(used_s: float = 0.0, *, at_work: bool = False, ended: bool = False) -> Activity:
    """Two processes that wait for each other, but for what is said otherwise."""
    receiving = {"name": "llama-bench", "state": "S", "waits_in": "recvfrom", "at_work": False, "main": False}
    waiting = receiving | {"waits_in": "futex", "main": True, "at_work": at_work}
    client = [ThreadActivity.model_validate(one) for one in (waiting, receiving, receiving)]
    backend = [ThreadActivity.model_validate(waiting | {"name": "rpc-server"})]
    return Activity(
        window_s=5,
        processes=(
            ProcessActivity(name="llama-bench", pid=7, used_s=used_s, threads=() if ended else tuple(client)),
            ProcessActivity(name="rpc-server 127.0.0.1:50052", pid=8, used_s=0, threads=tuple(backend)),
        ),
        sockets=(
            SocketActivity(
                local="127.0.0.1:50052",
                peer="127.0.0.1:40000",
                state="ESTABLISHED",
                unread_bytes=0,
                unsent_bytes=9,
            ),
        ),
    )


def proof(*rounds: Round, asked: int = 3) -> Proof:
    return Proof(
        build=11549, backends=4, rounds_asked=asked, deadline_s=120, model="m.gguf", rounds=rounds, logs="/l"
    )


def good(number: int, seconds: float) -> Round:
    return Round(number=number, outcome=Outcome.TOKENS, seconds=seconds, speeds=GOOD)


def test_all_rounds_that_gave_tokens_are_a_pass_with_the_slowest() -> None:
    passed = proof(good(1, 2.84), good(2, 3.06), good(3, 2.1))
    assert passed.passed
    assert passed.verdict() == "llama.cpp 11549 over 4 backends: 3 of 3 rounds gave tokens, slowest 3.1 s"
    assert passed.evidence() == []
    assert passed.rounds[0].line() == "round 1: 2.8 s, 51.3 tokens/s (prompt 118)"


def test_fewer_rounds_than_asked_are_no_pass() -> None:
    assert not proof(good(1, 2.0), asked=2).passed


def test_a_hang_names_its_round_and_what_everybody_waited_for() -> None:
    outcome, said = judge_late(look(0.01), [], 120)
    assert outcome is Outcome.HANG
    failed = Round(number=2, outcome=outcome, seconds=120, said=said, look=look(), log=("last words",))
    hung = proof(good(1, 2), failed)
    assert not hung.passed
    assert hung.verdict() == (
        "llama.cpp 11549 over 4 backends: 1 of 3 rounds gave tokens; round 2 did not: a hang: no end after "
        "120 s, and its processes used 0.01 s of processor time in 5 s, none of them about to run"
    )
    assert hung.evidence() == [
        "llama-bench (pid 7): 0.00 CPU s; main thread S futex, 2 x llama-bench S recvfrom",
        "rpc-server 127.0.0.1:50052 (pid 8): 0.00 CPU s; main thread S futex",
        "127.0.0.1:50052 - 127.0.0.1:40000 ESTABLISHED: 0 bytes unread, 9 unsent",
        "llama-bench: last words",
        "logs: /l",
    ]
    assert Proof.model_validate_json(hung.model_dump_json()) == hung


@pytest.mark.parametrize(
    "seen",
    [look(4.9), look(at_work=True), look(ended=True)],
    ids=["uses the processor", "waits for a processor or a disk", "ended while it was looked at"],
)
def test_what_still_goes_on_is_slow_and_no_hang(seen: Activity) -> None:
    outcome, said = judge_late(seen, [], 120)
    assert outcome is Outcome.SLOW
    assert said.startswith("slow, not a hang: no end after 120 s")
    assert "--deadline" in said


def test_a_dead_backend_explains_a_client_that_waits() -> None:
    outcome, said = judge_late(look(), ["rpc-server 127.0.0.1:50052 ended by SIGSEGV"], 120)
    assert outcome is Outcome.CRASH
    assert said == "rpc-server 127.0.0.1:50052 ended by SIGSEGV; llama-bench: no end after 120 s"


@pytest.mark.parametrize(
    ("code", "ended", "speeds", "holding", "outcome", "says"),
    [
        (0, [], GOOD, 4, Outcome.TOKENS, ""),
        (-6, [], None, 0, Outcome.CRASH, "llama-bench ended by SIGABRT"),
        (
            1,
            ["rpc-server x ended by SIGKILL"],
            None,
            0,
            Outcome.CRASH,
            "exit status 1; rpc-server x ended by",
        ),
        (0, ["rpc-server x ended by SIGKILL"], GOOD, 4, Outcome.CRASH, "rpc-server x ended by SIGKILL"),
        (0, [], None, 0, Outcome.CRASH, "reported no tokens"),
        (0, [], GOOD, 3, Outcome.NOT_DISTRIBUTED, "3 of 4 held any"),
    ],
)
def test_a_round_is_good_only_with_tokens_from_all_backends(
    code: int, ended: list[str], speeds: Speeds | None, holding: int, outcome: Outcome, says: str
) -> None:
    found, said = judge_ended(code, ended, speeds, holding, 4)
    assert found is outcome
    assert says in said


def bench(*tests: tuple[int, int, float]) -> str:
    """What llama-bench prints of such tests, as far as it is read."""
    return json.dumps([{"n_prompt": p, "n_gen": n, "n_depth": 0, "avg_ts": rate} for p, n, rate in tests])


PROMPT, DECODE, NOTHING = (64, 0, 118.2), (0, 32, 51.26), (0, 32, 0.0)


def test_speeds_are_those_of_the_two_tests() -> None:
    assert read_speeds(bench(PROMPT, DECODE)) == GOOD


@pytest.mark.parametrize(
    "report",
    ["", "[\n", "null", "{}", "[3]", bench(PROMPT), bench(DECODE), bench(PROMPT, NOTHING)],
)
def test_a_report_without_both_speeds_proves_nothing(report: str) -> None:
    assert read_speeds(report) is None


def test_sockets_of_the_ports_are_read_with_their_queues(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text("""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:C384 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:C384 0100007F:9C40 01 00000000:00000010 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0100007F:9C40 0100007F:C384 01 00000200:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1
   3: 0100007F:9C41 0100007F:C384 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   4: 0100007F:0016 0100007F:9C44 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 20 4 30 10 -1
""")
    ends = sockets_of(tcp_sockets([table]), [50052])
    assert [(end.local, end.state, end.unread_bytes, end.unsent_bytes) for end in ends] == [
        ("127.0.0.1:50052", "LISTEN", 1, 0),
        ("127.0.0.1:50052", "ESTABLISHED", 16, 0),
        ("127.0.0.1:40000", "ESTABLISHED", 0, 512),
    ]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("1234", "llama.cpp 1234 is not in the release catalogue, which has 6666, "),
        ("11549 --backends 0", "--backends 0: one coordinator can use 1 to 15 rpc-servers"),
        ("11549 --backends 16", "--backends 16: one coordinator can use 1 to 15 rpc-servers"),
        ("11549 --rounds 0", "--rounds 0, .*neither may be 0"),
        ("11549 --deadline 0", "--deadline 0: neither may be 0"),
        ("11549 --model nobody/nothing:0b", "no model 'nobody/nothing:0b'"),
        ("11549 --model {shallow} --backends 5", r"shallow\.gguf has 4 layers, too few for 5 backends"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_built(
    typed: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setattr("harness.release_proof.local.run_playbook", lambda *_, **__: pytest.fail("builds"))
    shallow = tmp_path / "shallow.gguf"
    synthesise("tiny", "Q8_0", shallow)
    done = CliRunner().invoke(app, ["release", "prove", *typed.format(shallow=shallow).split()])
    assert isinstance(done.exception, HarnessError), done.output
    assert re.search(says, str(done.exception))
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "cache").exists()
