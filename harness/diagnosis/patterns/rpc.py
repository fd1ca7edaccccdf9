"""Lines of llama.cpp's RPC and of the network under it (``ggml-rpc.cpp``, ``transport.cpp``)."""

from harness.diagnosis.patterns import kind

VERSION_MISMATCH = kind(
    "RPC version mismatch",
    "the other side speaks another RPC protocol",
    "mismatch|hello command|protocol version",
    r"RPC server version mismatch: ",
    r"Expected HELLO command",
    r"HELLO request size mismatch",
    r"(?i)rpc.*(?:unsupported|incompatible|mismatched) protocol version",
)

UNREACHABLE = kind(
    "backend unreachable",
    "no connection to a backend could be made",
    "fail|resolve host|refused|1006",
    r"[Ff]ailed to connect to (?:\S*:\d+|\S+\[.*\]|RPC|rpc|server at|the RPC|backend)",
    r"Cannot resolve host",
    r"Failed to parse endpoint",
    r"RPC handshake failed for",
    r"[Ff]ailed to (?:initialize|get) RPC (?:backend|device)",
    r"(?i)(?:rpc|connect|:\d{4,5}\b).*(?:connection refused|ECONNREFUSED)",
    r"WSAECONNREFUSED|(?:WSA|[Ee]rror|code)\D{0,8}10061\b",
    r"target machine actively refused",
    unless=r"huggingface|http client error|ollama\.ai|ollama\.com|https?://",
)

LOST = kind(
    "backend lost",
    "a backend's connection broke while it was used",
    "rpc|send failed|recv failed|reset by peer|econnreset|wsaeconn|1005|forcibly closed|rdma",
    r"Remote RPC server crashed or returned malformed response",
    # The same check before 2025-06 (build 5620), and in forks.
    r"ggml-rpc\S*:\d+: .*(?:GGML_ASSERT\((?:status|result|ret)\b|GGML_ASSERT\(.*status\))",
    r"GGML_ASSERT: \S*ggml-rpc\S*:\d+: (?:status|ret|result|sock)",
    r"(?:send|recv) failed \(bytes_(?:sent|recv)=",
    r"(?i)(?:rpc|recv|send).*(?:connection reset by peer|ECONNRESET)",
    r"WSAECONN(?:RESET|ABORTED)|(?:WSA|[Ee]rror|code)\D{0,8}1005[34]\b",
    r"existing connection was forcibly closed",
    r"RDMA\S* .*(?:wc error|poll_cq failed|CQ wc error)",
)

LOST_FRAME = kind(
    "a frame of the RPC client",
    "the process aborted inside the RPC client: the line is from its stack trace",
    "rpc",
    r"(?:#\d+ |\(|\d+ +\S+ +0x\S+ )\S*.*ggml_backend_rpc_(?:buffer|graph|get|set|synchronize)\w*",
    r"#\d+ .*rpc_dispatcher::",
)

NO_ROUTE = kind(
    "no route to a node",
    "packets did not reach a node, or the link went down",
    "no route|unreach|is down|timed out|timedout|1006|1005|respond|lost carrier",
    r"[Nn]o route to host|\bEHOSTUNREACH\b",
    r"[Nn]etwork is (?:unreachable|down)|\bENETUNREACH\b",
    r"[Cc]onnection timed out|\bETIMEDOUT\b",
    r"WSAE(?:TIMEDOUT|HOSTUNREACH|NETUNREACH)",
    r"(?:WSA|[Ee]rror|code)\D{0,8}100(?:60|65|51)\b",
    r"connected (?:party|host) (?:did not properly respond|has failed to respond)",
    r"attempted to an unreachable (?:host|network)",
    r"(?:NIC )?Link is [Dd]own|Lost carrier",
    unless=r"huggingface|https?://|ntp|timesyncd|\bapt\b|dnf",
)

OTHER_BUILD = kind(
    "another build",
    "the other side of an RPC connection, or a library, is of another build",
    "unknown|tensor type|deserializing|fail|incompatible api|undefined symbol|c0000|322122|procedure entry",
    r"Unknown command: \d+",
    r"invalid tensor type received",
    r"error deserializing tensors?\b",
    r"\[\w+\] failed to create (?:source|graph|view_src) node",
    r"incompatible API version \(backend: \d+, current: \d+\)",
    r"undefined symbol: \S*(?:ggml|llama)",
    r"(?i)\b0xc0000139\b|\b3221225785\b",
    r"procedure entry point \S*(?:ggml|llama)\S* could not be located",
)

USES_RPC = kind(
    "RPC devices",
    "RPC devices are used",
    "rpc",
    r"\bRPC\d*\[",
    r"using device RPC",
    r"--rpc[ =,'\"]",
    is_failure=False,
)

BACKEND_SIDE = kind(
    "rpc-server",
    "the log is that of an rpc-server",
    "rpc|accepted client|create_backend|local cache",
    r"Starting RPC server v?\d",
    r"Accepted client connection",
    r"create_backend: using",
    r"Never expose the RPC server",
    r"^\s*local cache\s+: ",
    is_failure=False,
)
