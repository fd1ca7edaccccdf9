"""Lines of an end: a failed check, a signal as shells, kernels and systemd tell it, an orderly stop."""

from harness.diagnosis.logs.pattern import START, kind

ASSERTION = kind(
    "check failed",
    "a check inside the program failed, or an exception was not caught",
    ("GGML_ASSERT", r"GGML_ASSERT(?:\(.*\) failed|: )"),
    # GGML_ABORT: "<file>:<line>: <message>".
    (
        ".cpp:|.c:|.cu:|.cuh:|.h:|.hpp:|.m:|.mm:|.metal:",
        r"(?:^|[\s/\\])[\w.+-]+\.(?:cpp|c|cu|cuh|h|hpp|m|mm|metal):\d+: (?!\d+: )\S",
    ),
    ("ssertion ", r"[Aa]ssertion [`'\"].*['\"] failed"),
    ("ssertion failed|SSERTION FAILED", r"(?i)\bassertion failed\b"),
    ("terminate called after", r"terminate called after throwing an instance of"),
    ("libc++abi|uncaught exception", r"terminating (?:due to|with) uncaught exception|Unhandled exception"),
    (
        "double free|free(): |malloc(): |munmap_chunk|corrupted size",
        r"double free or corruption|(?:free|malloc|realloc|munmap_chunk)\(\): \w|corrupted size vs",
    ),
    ("stack smashing", r"stack smashing detected"),
    ("panic: ", rf"{START}panic: "),
)

ABORTED = kind(
    "aborted",
    "it died of SIGABRT",
    ("borted", rf"(?:{START}|\d\s+|: )Aborted\b(?: *\(core dumped\))?|zsh: abort"),
    ("SIGABRT|/ABRT", r"\bSIGABRT\b|status=6/ABRT"),
    ("signal: aborted", r"signal: aborted"),
    ("Trace/breakpoint|breakpoint trap", r"Trace/breakpoint trap|trace trap"),
    ("xit|xc000|xC000| code|longer running", r"(?i)\b0xc0000409\b|\b3221226505\b|-1073740791\b"),
    ("xit", r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}134\b"),
)

SEGFAULT = kind(
    "segmentation fault",
    "it died of SIGSEGV or SIGBUS",
    ("egmentation fault|egmentation violation", r"(?i)segmentation (?:fault|violation)"),
    ("segfault at", r"\b(?P<name>[\w.-]+)\[\d+\]: segfault at"),
    ("general protection", r"(?P<name>[\w.-]+)\[\d+\]:? .*general protection"),
    ("SIGSEGV|/SEGV|SIGBUS|/BUS", r"\bSIG(?:SEGV|BUS)\b|status=(?:11/SEGV|7/BUS)"),
    ("Bus error|bus error", r"(?i)\bbus error\b"),
    ("xit|xc000|xC000| code|longer running", r"(?i)\b0xc0000005\b|\b3221225477\b|-1073741819\b"),
    ("ccess violation", r"(?i)\baccess violation\b"),
    ("xit|xc000|xC000| code|longer running", r"(?i)\b0xc00000fd\b|\b3221225725\b"),
    ("xit", r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}139\b"),
)

ILLEGAL = kind(
    "illegal instruction",
    "it died of SIGILL",
    ("llegal instruction|LLEGAL_INSTRUCTION", r"(?i)\billegal[ _]instruction\b"),
    ("SIGILL|/ILL", r"\bSIGILL\b|status=4/ILL"),
    ("invalid opcode", r"(?:trap |: )invalid opcode"),
    ("xit|xc000|xC000| code|longer running", r"(?i)\b0xc000001d\b|\b3221225501\b|-1073741795\b"),
    ("xit", r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}132\b"),
)

SIGPIPE = kind(
    "broken pipe",
    "it died of SIGPIPE",
    ("SIGPIPE|/PIPE", r"\bSIGPIPE\b|status=13/PIPE"),
    ("signal: broken pipe", r"signal: broken pipe"),
    ("Broken pipe", rf"(?:{START}|\d\s+)Broken pipe\s*(?:$|\(core dumped\)|\S*(?:llama|rpc)\S*)"),
    ("xit", r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}141\b"),
)

RUNNER_ENDED = kind(
    "runner ended",
    "the process that ran the model ended, and its parent goes on",
    ("llama runner", r"llama runner (?:process )?(?:has )?(?:terminated|no longer running)"),
    ("upstream command exited|exited prematurely", r"upstream command exited prematurely"),
)

KILLED = kind(
    "killed",
    "it died of SIGKILL, and the line does not say by whom",
    ("Killed", rf"(?:{START}|\d\s+|line \d+: +\d+ )Killed\b(?! process)"),
    ("signal: killed", r"signal: killed"),
    ("SIGKILL|/KILL", r"\bSIGKILL\b|status=9/KILL"),
    ("xit", r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}137\b"),
)

TERMINATED_BUSY = kind(
    "ended while threads ran",
    "main returned while other threads ran: what SIGTERM does to a busy llama-server",
    ("terminate called without an active", r"terminate called without an active exception"),
    ("econd interrupt", r"Received second interrupt, terminating immediately"),
)

STOPPING = kind(
    "clean stop",
    "llama-server was told to stop",
    ("leaning up before exit", r"cleaning up before exit"),
    trouble=False,
)

STOPPED = kind(
    "stopped by a signal",
    "it was told to stop, by systemd or by a person",
    ("Terminated", rf"(?:{START}|\d\s+)Terminated\b"),
    ("/TERM|/INT", r"status=(?:15/TERM|2/INT)"),
    ("Stopped |Deactivated successfully", r"systemd\[\d+\]: (?:Stopped |.*Deactivated successfully)"),
    ("signal: terminated|signal: interrupt", r"signal: (?:terminated|interrupt)"),
    trouble=False,
)

STOP_TIMED_OUT = kind(
    "stop timed out",
    "it was told to stop and did not",
    ("stop-sigterm", r"State '(?:final|stop)-sigterm' timed out"),
    ("topping timed out", r"Stopping timed out\. Killing"),
)

SERVES = kind(
    "serves",
    "llama-server became ready, or went on serving",
    ("server is listening", r"server is listening on|HTTP server listening.*model loaded"),
    ("model loaded", r"(?:main|llama_server|load_model): model loaded|\"msg\":\"model loaded\""),
    ("slots are idle", r"all slots are idle"),
    ("starting the main loop", r"starting the main loop"),
    ("llama runner started in", r"llama runner started in"),
    trouble=False,
)

HUNG = kind(
    "no progress",
    "something waited for it in vain",
    ("blocked for more than", r"task (?P<name>\S+?):\d+ blocked for more than \d+ seconds"),
    (
        "timed out waiting for",
        r"timed out waiting for (?:llama (?:runner|server)|server) to (?:start|respond|be)",
    ),
    ("oft lockup", r"BUG: soft lockup .*\[(?P<name>[\w.-]+):\d+\]"),
    ("operation timed out", r"(?:start|watchdog) operation timed out"),
    ("atchdog timeout", r"Watchdog timeout"),
)

KINDS = (
    ASSERTION,
    ABORTED,
    SEGFAULT,
    ILLEGAL,
    SIGPIPE,
    RUNNER_ENDED,
    KILLED,
    TERMINATED_BUSY,
    STOPPING,
    STOPPED,
    STOP_TIMED_OUT,
    SERVES,
    HUNG,
)
