"""Lines of an end: a failed check, a signal as shells, kernels and systemd report it, a clean stop."""

from harness.diagnosis.patterns import START, kind

ASSERTION = kind(
    "check failed",
    "a check inside the program failed, or an exception was not caught",
    "assert|.c|.h|.m|terminat|exception|free|alloc|munmap|corrupted|smashing|panic",
    r"GGML_ASSERT(?:\(.*\) failed|: )",
    # GGML_ABORT: "<file>:<line>: <message>".
    r"(?:^|[\s/\\])[\w.+-]+\.(?:cpp|c|cu|cuh|h|hpp|m|mm|metal):\d+: (?!\d+: )\S",
    r"[Aa]ssertion [`'\"].*['\"] failed",
    r"(?i)\bassertion failed\b",
    r"terminate called after throwing an instance of",
    r"terminating (?:due to|with) uncaught exception|Unhandled exception",
    r"double free or corruption|(?:free|malloc|realloc|munmap_chunk)\(\): \w|corrupted size vs",
    r"stack smashing detected",
    rf"{START}panic: ",
)

ABORTED = kind(
    "aborted",
    "the process died of SIGABRT",
    "abort|abrt|trap|exit|c0000|322122|107374",
    rf"(?:{START}|\d\s+|: )Aborted\b(?: *\(core dumped\))?|zsh: abort",
    r"\bSIGABRT\b|status=6/ABRT",
    r"signal: aborted",
    r"Trace/breakpoint trap|trace trap",
    r"(?i)\b0xc0000409\b|\b3221226505\b|-1073740791\b",
    r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}134\b",
)

SEGFAULT = kind(
    "segmentation fault",
    "the process died of SIGSEGV or SIGBUS",
    "segmentation|segfault|protection|segv|bus|violation|exit|c0000|322122|107374",
    r"(?i)segmentation (?:fault|violation)",
    r"\b(?P<name>[\w.-]+)\[\d+\]: segfault at",
    r"(?P<name>[\w.-]+)\[\d+\]:? .*general protection",
    r"\bSIG(?:SEGV|BUS)\b|status=(?:11/SEGV|7/BUS)",
    r"(?i)\bbus error\b",
    r"(?i)\b0xc0000005\b|\b3221225477\b|-1073741819\b",
    r"(?i)\baccess violation\b",
    r"(?i)\b0xc00000fd\b|\b3221225725\b",
    r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}139\b",
)

ILLEGAL = kind(
    "illegal instruction",
    "the process died of SIGILL",
    "illegal|sigill|/ill|invalid|exit|c0000|322122|107374",
    r"(?i)\billegal[ _]instruction\b",
    r"\bSIGILL\b|status=4/ILL",
    r"(?:trap |: )invalid opcode",
    r"(?i)\b0xc000001d\b|\b3221225501\b|-1073741795\b",
    r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}132\b",
)

SIGPIPE = kind(
    "broken pipe",
    "the process died of SIGPIPE",
    "pipe|exit",
    r"\bSIGPIPE\b|status=13/PIPE",
    r"signal: broken pipe",
    rf"(?:{START}|\d\s+)Broken pipe\s*(?:$|\(core dumped\)|\S*(?:llama|rpc)\S*)",
    r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}141\b",
)

RUNNER_ENDED = kind(
    "runner ended",
    "the process that ran the model ended, but its parent runs on",
    "llama runner|prematurely",
    r"llama runner (?:process )?(?:has )?(?:terminated|no longer running)",
    r"upstream command exited prematurely",
)

KILLED = kind(
    "kill",
    "the process died of SIGKILL, but not who sent it",
    "kill|exit",
    rf"(?:{START}|\d\s+|line \d+: +\d+ )Killed\b(?! process)",
    r"signal: killed",
    r"\bSIGKILL\b|status=9/KILL",
    r"(?i)\bexit(?:ed|s)?\b[^.]{0,30}?\b(?:code|status)?\W{0,3}137\b",
)

TERMINATED_BUSY = kind(
    "ended while threads ran",
    "main returned while other threads ran: what SIGTERM does to a busy llama-server",
    "terminat|second interrupt",
    r"terminate called without an active exception",
    r"Received second interrupt, terminating immediately",
)

STOPPING = kind(
    "clean stop",
    "llama-server began a clean stop",
    "cleaning up",
    r"cleaning up before exit",
    is_failure=False,
)

STOPPED = kind(
    "stopped by a signal",
    "the process was stopped, by systemd or by a person",
    "terminat|/term|/int|stopped|deactivated|signal: int",
    rf"(?:{START}|\d\s+)Terminated\b",
    r"status=(?:15/TERM|2/INT)",
    r"systemd\[\d+\]: (?:Stopped |.*Deactivated successfully)",
    r"signal: (?:terminated|interrupt)",
    is_failure=False,
)

STOP_TIMED_OUT = kind(
    "stop timed out",
    "the process was asked to stop and did not end",
    "timed out",
    r"State '(?:final|stop)-sigterm' timed out",
    r"Stopping timed out\. Killing",
)

SERVES = kind(
    "serves",
    "llama-server became ready, or continued to serve",
    "is listening|model loaded|slots are idle|main loop|runner started|server listening",
    r"server is listening on|HTTP server listening.*model loaded",
    r"(?:main|llama_server|load_model): model loaded|\"msg\":\"model loaded\"",
    r"all slots are idle",
    r"starting the main loop",
    r"llama runner started in",
    is_failure=False,
)

HUNG = kind(
    "no progress",
    "something waited for the process until a timeout",
    "blocked for|timed out|lockup|watchdog",
    r"task (?P<name>\S+?):\d+ blocked for more than \d+ seconds",
    r"timed out waiting for (?:llama (?:runner|server)|server) to (?:start|respond|be)",
    r"BUG: soft lockup .*\[(?P<name>[\w.-]+):\d+\]",
    r"(?:start|watchdog) operation timed out",
    r"Watchdog timeout",
)
