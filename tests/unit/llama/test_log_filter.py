"""What is kept of llama-server's output: all that a diagnosis needs, nothing that a request says."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.diagnosis import ExitStatus
from harness.diagnosis.classify import diagnose_log
from harness.diagnosis.scanner import meaning
from harness.llama import log_filter
from harness.llama.log_filter import LogFilter
from hypothesis import given
from hypothesis import strategies as st

LOGS = Path(__file__).parents[2] / "data" / "logs"
RECORDED: dict[str, dict[str, Any]] = json.loads((LOGS / "recorded.json").read_text())
READY = b"main: model loaded\n"
READY_TIMED = b"0.03.001.002 I srv  llama_server: model loaded\n"
QUOTING = [
    # Build 6751.
    b"slot update_slots: id  0 | task 61 | old: ... \n<|im_start|>user\n | Tell me about SECRET\n",
    b"slot update_slots: id  0 | task 61 | new: ... <|im_start|>system\n | SECRET\n",
    b"slot update_slots: id  0 | task 61 |      198       1    4093     198   31530\n",
    b'got exception: {"code":500,"message":"Failed to parse tools: tools = \\"SECRET\\""}\n',
    b"slot update_slots: id  0 | task 61 | old: ... a |\n#1  0x1 in SECRET ()\nCUDA error: SECRET\n",
    b"#1 SECRET\n#1  SECRET\n# 1 SECRET\n#12 SECRET (again)\n*** SECRET ***\n*** Error in SECRET\n",
    b"parse: error parsing grammar: expecting name at SECRET\n\nroot ::= SECRET\nfoo ::= [\n",
    b"common_sampler_types_from_names: unable to match sampler by name 'SECRET'\n",
    b'  what():  Invalid diff: \'{"a": "SECRET\' not found at start of \'{"SECRET"\'\n',
    b'got exception: {"code":500,"message":"but got: \\"' + b"SECRET" * 1000 + b"\n",
    # Build 11549.
    b'0.07.218.212 W srv    operator(): got exception: {"error":{"code":500,"message":"but got: SECRET"}}\n',
    b"0.10.740.292 W srv  server_chat_: unsupported Responses tool type 'SECRET' skipped\n",
    b"0.10.740.292 E anthropic string not as expected: SECRET\n",
    b"0.10.740.292 I srv  load_image: downloading image from 'http://a/SECRET'\n",
]


OF_A_TEXT = b"res SECRET\nsrv ::= SECRET\nmain: SECRET\nCUDA error: SECRET\nrecv failed (SECRET\n"
"""Lines of a grammar, a prompt or an answer that look like lines of llama-server."""
GRAMMAR = b"parse: error parsing grammar: expecting ::= at SECRET\n\nroot ::= a\n" + OF_A_TEXT
WITHOUT_QUOTES = [
    b"0.07.218.212 E slot  operator(): id  0 | task 1 | got exception: Failed to parse tools: SECRET\n",
    b"0.07.218.212 W srv  stop: got exception: Unknown role: SECRET\n",
    b"0.07.218.212 W common_chat_peg_parse: unparsed peg-native output: SECRET\n",
    b"0.07.218.212 E common_chat_format_example: failed to apply template: SECRET\n",
    b"0.07.218.212 E srv  send_error: task id = 3, error: Failed to format input: SECRET\n",
    b"0.07.218.212 W srv  control: control stop on unknown completion id=SECRET, no live slot\n",
    b"0.07.218.212 W srv  evict: stop on unknown stream session, conv_id=SECRET matched nothing, [SECRET]\n",
]


def kept(output: bytes, line_bytes: int = 2048) -> bytes:
    log = LogFilter(line_bytes)
    return log.feed(output) + log.end()


@pytest.mark.parametrize("output", QUOTING)
def test_what_a_request_says_is_left_out(output: bytes) -> None:
    assert b"SECRET" not in kept(READY + output)


def test_grammar_that_cannot_be_parsed_is_left_out_whole() -> None:
    after = b"srv  update_slots: all slots are idle\n"
    end = b"llama_grammar_init_impl: failed to parse grammar\n"
    assert kept(READY + GRAMMAR + end + after) == READY + end + after
    end = b"0.07.218.212 E failed to parse grammar\n"
    assert kept(READY + GRAMMAR + end + after) == READY + end + after


@pytest.mark.parametrize(
    "first",
    [
        b"0.07.218.212 E common_sampler_init: error initializing grammar sampler for grammar:\n",
        b"0.07.218.212 W common_chat_peg_parse: unparsed peg-native output: \n",
        b"0.07.218.212 E anthropic string not as expected: \n",
        b"WARNING: JSON schema conversion was incomplete: \n",
    ],
)
def test_rest_of_a_message_is_left_out_where_lines_have_a_time(first: bytes) -> None:
    text = b"res SECRET\nsrv ::= SECRET\nmain: SECRET\nrecv failed (SECRET\ncommon_x: SECRET\n"
    after = b"0.07.218.213 I srv  update_slots: all slots are idle\n"
    output = kept(READY_TIMED + first + text + after)
    assert b"SECRET" not in output
    assert output.endswith(after)


@pytest.mark.parametrize("line", WITHOUT_QUOTES)
def test_what_a_message_says_of_a_request_without_quotes_is_left_out(line: bytes) -> None:
    output = kept(READY_TIMED + line)
    assert b"SECRET" not in output
    assert output.startswith(READY_TIMED + line[:30])


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_log_keeps_its_diagnosis(name: str) -> None:
    raw = (LOGS / f"{name}.log").read_bytes()
    ended = RECORDED[name].get("exit")
    exit_status = ExitStatus(time_ns=1, **ended) if ended else None
    classes = [
        diagnose_log({name: log.decode(errors="replace").splitlines()}, exit_status).failure_class
        for log in (raw, kept(raw))
    ]
    assert classes[0] == classes[1]


def untimed(line: str) -> str:
    return re.sub(r"^\d+\.\d\d\.\d{3}\.\d{3} [A-Z] ", "", line)


CASES: list[dict[str, Any]] = json.loads((LOGS / "wordings.json").read_text())
WORDINGS = [untimed(line) for case in CASES for line in case["lines"]]
SAID = [line.split("what():  ")[1] for line in WORDINGS if "what():  " in line]
"""What an exception says: llama-server prints that of one that it catches as well."""
CAUGHT = [
    before + said
    for before in (
        "got exception: ",
        "srv    operator(): got exception: ",
        "slot update_slots: id  0 | task 12 | got exception: ",
        "srv    send_error: task id = 12, error: ",
        "srv    send_error: task id = 12, error: got exception: ",
    )
    for said in SAID
]
VULKAN = [
    "ggml_vulkan: Compute pipeline creation failed for matmul_f16",
    "ggml_vulkan: vk::Device::createComputePipeline: ErrorUnknown",
]
RECORDED_LINES = [
    untimed(line)
    for name in RECORDED
    for line in (LOGS / f"{name}.log").read_text(errors="replace").splitlines()
]
PAST_THE_LOG = re.compile(
    r"ggml_vulkan: |terminat|  what\(\): |\S+: symbol lookup error|\S+: \S+: .*Assertion `"
)
"""Printed without a time by every build."""
NOT_KEPT = {
    "another program prints it: systemd, a shell, the kernel, Ollama or llama-swap": re.compile(
        r"systemd\[|kernel: |NVRM: |oom-kill:|\[[\d.]+\] |[\w-]+\[\d+\]: segfault|Broken pipe|time="
        r"|Error: |llama runner |ERROR Port"
    ),
    "rpc-server prints it": re.compile(
        r"Accepted client|Expected HELLO|Starting RPC server|Unknown command"
        r"|Failed to (?:create server socket|allocate input)|  local cache|         Never expose|Invalid host"
    ),
    "llama-server prints it before it is ready": re.compile(
        r"error: (?:unknown|invalid) |error while handling|(?:main: )?couldn't bind|bind(?: failed)?: "
        r"|build: |load_backend: |load_tensors: |llama_model_load: error |ERR \[|\{\"tid\""
    ),
    "a path that the request names may be in it": re.compile(r".*(?:exception|error): filesystem error: "),
}
"""Lines that the filter may take from a diagnosis."""


def kinds(log: str) -> set[str]:
    return {kind.name for line in log.splitlines() for kind, _, _ in meaning(line)}


def changed(line: str) -> bool:
    time = "" if PAST_THE_LOG.match(line) else "0.06.000.000 E "
    logs = [(READY, line.encode()), (READY_TIMED, (time + line).encode())]
    return any(kinds(kept(ready + text).removeprefix(ready).decode()) != kinds(line) for ready, text in logs)


def test_no_line_of_a_running_server_means_less_to_a_diagnosis() -> None:
    lines = dict.fromkeys([*WORDINGS, *CAUGHT, *VULKAN, *RECORDED_LINES])
    lost = [line for line in lines if changed(line)]
    assert [line for line in lost if not any(p.match(line) for p in NOT_KEPT.values())] == []
    assert [reason for reason, p in NOT_KEPT.items() if not any(map(p.match, lost))] == []


@pytest.mark.parametrize(
    "said", [b"std::bad_alloc of SECRET", b"vk::SECRET: Error: SECRET", b"Compute error. SECRET"]
)
def test_exception_that_only_begins_like_a_failure_of_the_server_is_left_out(said: bytes) -> None:
    for before in (b"0.07.218.212 E srv  x: got exception: ", b"0.07.218.212 E srv  x: task id = 3, error: "):
        assert kept(READY_TIMED + before + said) == READY_TIMED + before + b"'...\n"


@pytest.mark.parametrize(
    "line",
    [
        b"/x/ggml-rpc.cpp:700: Remote RPC server crashed or returned malformed response",
        b'/x/llama-context.cpp:622: GGML_ASSERT(n >= 0 && "too few") failed',
        b"terminate called after throwing an instance of 'std::runtime_error'",
        b"/opt/lib/libggml-base.so(ggml_abort+0x15c)[0x7f1c2a]",
        b"#4  0x00007f1 in ggml_backend_rpc_buffer_set_tensor () from libggml-rpc.so",
        b"#12 0x00005565 in server_queue::start_loop() ()",
        b"#3  ggml_abort (file=0x1, line=622) at /x/ggml/src/ggml.c:227",
        b"#2  <signal handler called>",
        b"*** stack smashing detected ***: terminated",
        b"*** buffer overflow detected ***: terminated",
        b"*** %n in writable segment detected ***",
        b"*** Error in `llama-server': double free or corruption (out): 0x00007f1c2a ***",
        b"recv failed (bytes_recv=-1, size_to_recv=8)",
        b"ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9.00 MiB: cudaMalloc failed: out of memory",
        b"CUDA error: out of memory",
        b"srv    operator(): operator(): cleaning up before exit...",
        b"srv  update_slots: all slots are idle",
        b"prompt eval time =    2672.78 ms /    94 tokens",
        b"0.05.647.574 I slot print_timing: id  0 | task 0 |        eval time =     119.70 ms /     4 tokens",
    ],
)
def test_line_of_a_death_or_of_the_service_is_kept(line: bytes) -> None:
    assert kept(READY + line) == READY + line + b"\n"


@pytest.mark.parametrize("time", [b"", b"0.05.647.574 W "])
@pytest.mark.parametrize(
    "imitated",
    [
        b"recv failed (bytes_recv=0)",
        b"Failed to connect to 10.0.0.1:50052",
        b"RPC server version mismatch",
        b"srv  x: recv failed (",
        b"main: a\nrecv failed (",
    ],
)
def test_prompt_cannot_imitate_a_line_about_a_backend(imitated: bytes, time: bytes) -> None:
    slot = time + b"slot update_slots: id  0 | task 61 | "
    text = b"... hi |\n" + imitated + b"\n" + imitated + b"\n"
    tokens = slot + b"     198       1    4093\n"
    after = slot + b"n_past = 3\n" + b"recv failed (bytes_recv=-1, size_to_recv=8)\n"
    output = slot + b"old: " + text + slot + b"new: " + text + tokens + tokens + after
    assert kept(READY + output) == READY + after


def test_log_of_a_load_is_kept_whole() -> None:
    load = b"print_info: file type = 'Q4_1'\nanything\n"
    assert kept(load + READY) == load + READY


def test_long_line_is_cut_and_costs_no_memory() -> None:
    log = LogFilter(100)
    for _ in range(1000):
        assert log.feed(b"x" * 10_000) == b""
    assert len(log._line) == 100
    assert log.feed(b"\nnext\n") == b"x" * 100 + b" ...\nnext\n"
    assert log.cut == 1


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_blocks_may_begin_and_end_anywhere(output: bytes, cuts: list[int]) -> None:
    log, places = LogFilter(64), sorted({0, *(min(cut, len(output)) for cut in cuts), len(output)})
    pieces = [log.feed(output[a:b]) for a, b in pairwise(places)]
    assert b"".join(pieces) + log.end() == kept(output, 64)


def test_program_keeps_its_exit_status_and_its_process() -> None:
    script = "import os; print(os.getpid()); print('main: model loaded\\nSECRET', flush=True); os._exit(3)"
    command = [sys.executable, log_filter.__file__, "2048", sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 3
    assert output.decode().splitlines() == [
        str(process.pid),
        "main: model loaded",
        "1 lines that may quote requests were left out of this log",
    ]
