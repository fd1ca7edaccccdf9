"""Filters llama-server's output: removes lines that may quote requests (prompts, tools, grammars, bodies).

llama-server quotes requests and answers in many of its messages, whole and over several lines. So once the
model is loaded only lines of known kinds are kept, each up to its first quote. Where the lines have a time,
a line without one is the rest of a message: only the lines of a death and of Vulkan are kept of those. Read
in the sources of builds 6751 and 11549 (``tools/server``, ``common``, ``src/llama-grammar.cpp``).

Needs only Python: the role pool_server copies this file to the nodes, where it runs before llama-server.
"""

import os
import re
import signal
import sys

_READY = re.compile(rb"\b(?:main|llama_server): model loaded|\blistening on http")
"""llama-server reads requests after this line."""
_TIME = re.compile(rb"\d+\.\d\d\.\d{3}\.\d{3} [A-Z] ")
_PREFIX = rb"(?:%b)?" % _TIME.pattern
_OWN = re.compile(
    rb"^%b(?:(?:srv|slot|que|res|cmn) |main: |(?:llama|ggml|gguf|common)_\w+: |~llama_context: "
    rb"|(?:decode|find_slot|init_batch|process_ubatch|graph_reserve|sched_reserve|alloc_tensor_range): "
    rb"|(?:send|recv) failed \(|got exception: "
    rb"|failed to parse grammar$| *(?:prompt eval|eval|total) time = )" % _PREFIX
)
_UNTIMED = b"ggml_vulkan: "
"""Its lines go past the log, to std::cerr."""
_DYING = re.compile(
    rb"^%b(?:terminat(?:e called|ing) |Received second interrupt|GGML_ASSERT|Assertion failed"
    rb"|\S*llama-[\w-]+: (?:[^\s:]+:\d+: .*: Assertion `.*' failed\.$"
    rb"|symbol lookup error: \S+: undefined symbol: \S+$)"
    rb"|\S*[\w+-]\.(?:cpp|c|cu|cuh|h|hpp|m|mm|metal):\d+: |\S+\([^()]*\+0x[0-9a-f]+\) ?\[0x"
    rb"|double free|(?:free|malloc|realloc|munmap_chunk)\(\): |corrupted size vs"
    # gdb's frames, and the lines of glibc that begin with asterisks: a request's text may begin so too.
    rb"|#(?:\d  |\d\d |\d{3,} )(?:0x[0-9a-f]+ in \S|<signal handler called>$|\S+ \(.*\) at \S+:\d+$)"
    rb"|\*\*\* (?:(?:stack smashing|buffer overflow|%%n in writable segments?|invalid %%N\$ use) detected"
    rb" \*\*\*|bit out of range 0 - FD_SETSIZE on fd_set \*\*\*"
    rb"|longjmp causes uninitialized stack frame \*\*\*"
    rb"|Error in `[^`']*': [^`']*: 0x[0-9a-f]+ \*\*\*$)"
    rb"|Segmentation fault|Aborted|Illegal instruction|Bus error"
    rb"|Failed to connect to |RPC server version mismatch"
    rb"|(?:CUDA|ROCm|SYCL|rocBLAS) error|hipError|HSA_STATUS_|Memory access fault by GPU"
    rb"|error: [\w ]+ \([0-9a-f]{8}:kIOGPUCommandBuffer\w+\)$"
    rb"|level_zero backend failed|Native API failed|Exception caught at file)" % _PREFIX
)
_UNCAUGHT = re.compile(rb"^ *what\(\): ")
_PROMPT = re.compile(rb"\| (?:old|new): \.\.\. |\| task -?\d+ \|\s+\d[\s\d]*$")
"""The place where two prompts differ, as text and as tokens."""
_PROMPT_TEXT = re.compile(rb"\| (?:old|new): \.\.\. ")
_SLOT = re.compile(rb"^%bslot +\w+: id +\d+ \| task -?\d+ \| " % _PREFIX)
"""What follows such text, which is ten tokens long: less than it would need to say this itself."""
_GRAMMAR = re.compile(rb"^parse: error parsing grammar: ")
"""The whole grammar follows, with line ends of its own."""
_GRAMMAR_END = re.compile(rb"^%b(?:llama_grammar_init_impl: )?failed to parse grammar$" % _PREFIX)
_FIXED = (
    rb"(?:got exception: )?(?:std::bad_(?:alloc|array_new_length)|vk::[\w:]+: Error\w+"
    rb"|Compute error\.|Invalid input batch\.|Context size has been exceeded\.)$"
)
"""Failures of the server that no request words, whole."""
_QUOTED = re.compile(
    rb"[\"'].*|(?<=exception: )(?!%b).*|(?<=failed to apply template: ).*|(?<=completion id=).*"
    rb"|(?<=conv_id=).*|(?<= output: ).*|(?<=, error: )(?!%b).*" % (_FIXED, _FIXED)
)
"""What an exception says may be a part of the request, an output that could not be parsed is the answer."""
_BLOCK_BYTES = 64 * 1024


class LogFilter:
    """Removes the lines that may quote a request, and cuts the others at ``line_bytes``."""

    def __init__(self, line_bytes: int) -> None:
        self._line_bytes = line_bytes
        self._line = bytearray()
        self._too_long = False
        self._in_prompt = self._in_grammar = False
        """The line may be the rest of a text of the request, which has line ends of its own."""
        self._timed = False
        """The lines begin with their time."""
        self.ready = False
        """Whether the log has said that the model is loaded."""
        self.cut = 0
        """Lines that were longer than ``line_bytes``."""
        self.left_out = 0
        """Lines that may quote a request."""

    def feed(self, block: bytes) -> bytes:
        """The kept lines that ``block`` ends; it may begin and end anywhere."""
        *ended, rest = block.split(b"\n")
        kept = []
        for piece in ended:
            self._add(piece)
            kept.append(self._end_line())
        self._add(rest)
        return b"".join(kept)

    def end(self) -> bytes:
        """The last line, if the output did not end with a line end."""
        return self._end_line() if self._line else b""

    def _add(self, piece: bytes) -> None:
        room = self._line_bytes - len(self._line)
        self._line += piece[:room]
        self._too_long |= len(piece) > room

    def _end_line(self) -> bytes:
        line, too_long = bytes(self._line), self._too_long
        self._line.clear()
        self._too_long = False
        if self.ready:
            kept = None if self._in_text(line) else _without_request(line, timed=self._timed)
            if kept is None:
                self.left_out += 1
                return b""
            line = kept
        elif _READY.search(line):
            self.ready, self._timed = True, _TIME.match(line) is not None
        self.cut += too_long
        return line + (b" ...\n" if too_long else b"\n")

    def _in_text(self, line: bytes) -> bool:
        """Whether the line may belong to a text of the request."""
        if self._in_grammar:
            self._in_grammar = _GRAMMAR_END.match(line) is None
        elif _GRAMMAR.match(line):
            self._in_grammar = True
        elif _SLOT.match(line):
            self._in_prompt = _PROMPT_TEXT.search(line) is not None
        return self._in_grammar or self._in_prompt


def _without_request(line: bytes, *, timed: bool) -> bytes | None:
    """A line of a server that is ready, without quoted text; None for one that is left out."""
    if _DYING.match(line):
        return line
    rest_of_message = timed and not (_TIME.match(line) or line.startswith(_UNTIMED))
    own = _OWN.match(line) and not rest_of_message
    if not (own or _UNCAUGHT.match(line)):
        return None
    if _PROMPT.search(line):
        return None
    return _QUOTED.sub(b"'...", line)


def main(arguments: list[str]) -> None:
    """``log_filter.py LINE_BYTES PROGRAM ARGUMENTS...``: becomes PROGRAM, whose output a child filters.

    The child ends when the output does. A service's main process stays PROGRAM, with its exit status.
    """
    line_bytes, *command = arguments
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the last lines of a stop are filtered too
        _filter(reading, LogFilter(int(line_bytes)))
        return
    os.close(reading)
    for descriptor in (1, 2):
        os.dup2(writing, descriptor)
    os.close(writing)
    os.execv(command[0], command)  # noqa: S606 - the unit's own command line


def _filter(reading: int, log_filter: LogFilter) -> None:
    while block := os.read(reading, _BLOCK_BYTES):
        _write(log_filter.feed(block))
    left_out = b"%d lines that may quote requests were left out of this log\n" % log_filter.left_out
    _write(log_filter.end() + (left_out if log_filter.left_out else b""))


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main(sys.argv[1:])
