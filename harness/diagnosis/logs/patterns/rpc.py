"""Lines of llama.cpp's RPC and of the network under it (``ggml-rpc.cpp``, ``transport.cpp``)."""

from harness.diagnosis.logs.pattern import kind

VERSION_MISMATCH = kind(
    "RPC version mismatch",
    "the other side speaks another RPC protocol",
    ("ersion mismatch", r"RPC server version mismatch: "),
    ("HELLO command", r"Expected HELLO command"),
    ("HELLO request size", r"HELLO request size mismatch"),
    ("rotocol version", r"(?i)rpc.*(?:unsupported|incompatible|mismatched) protocol version"),
)

UNREACHABLE = kind(
    "backend unreachable",
    "no connection to a backend could be made",
    (
        "ailed to connect to",
        r"[Ff]ailed to connect to (?:\S*:\d+|\S+\[.*\]|RPC|rpc|server at|the RPC|backend)",
    ),
    ("annot resolve host", r"Cannot resolve host"),
    ("ailed to parse endpoint", r"Failed to parse endpoint"),
    ("RPC handshake failed", r"RPC handshake failed for"),
    ("ailed to initialize RPC|ailed to get RPC", r"[Ff]ailed to (?:initialize|get) RPC (?:backend|device)"),
    ("onnection refused|ECONNREFUSED", r"(?i)(?:rpc|connect|5\d{4}).*(?:connection refused|ECONNREFUSED)"),
    ("WSA|rror| code", r"WSAECONNREFUSED|(?:WSA|[Ee]rror|code)\D{0,8}10061\b"),
    ("actively refused", r"target machine actively refused"),
    unless=r"huggingface|http client error|ollama\.ai|ollama\.com|https?://",
)

LOST = kind(
    "backend lost",
    "a backend's connection broke while it was used",
    ("Remote RPC server crashed", r"Remote RPC server crashed or returned malformed response"),
    # The same check before 2025-06 (build 5620), and in forks.
    ("ggml-rpc", r"ggml-rpc\S*:\d+: .*(?:GGML_ASSERT\((?:status|result|ret)\b|GGML_ASSERT\(.*status\))"),
    ("GGML_ASSERT", r"GGML_ASSERT: \S*ggml-rpc\S*:\d+: (?:status|ret|result|sock)"),
    ("send failed (|recv failed (", r"(?:send|recv) failed \(bytes_(?:sent|recv)="),
    ("onnection reset by peer|ECONNRESET", r"(?i)(?:rpc|recv|send).*(?:connection reset by peer|ECONNRESET)"),
    ("WSA|rror| code", r"WSAECONN(?:RESET|ABORTED)|(?:WSA|[Ee]rror|code)\D{0,8}1005[34]\b"),
    ("forcibly closed", r"existing connection was forcibly closed"),
    ("RDMA", r"RDMA\S* .*(?:wc error|poll_cq failed|CQ wc error)"),
)

LOST_FRAME = kind(
    "a frame of the RPC client",
    "a stack that aborted inside the RPC client",
    (
        "ggml_backend_rpc",
        r"(?:#\d+ |\(|\d+ +\S+ +0x\S+ )\S*.*ggml_backend_rpc_(?:buffer|graph|get|set|synchronize)\w*",
    ),
    ("rpc_dispatcher", r"#\d+ .*rpc_dispatcher::"),
)

NO_WAY = kind(
    "no way to a node",
    "packets did not reach a node, or the link went down",
    ("o route to host|EHOSTUNREACH", r"[Nn]o route to host|\bEHOSTUNREACH\b"),
    (
        "etwork is unreachable|ENETUNREACH|etwork is down",
        r"[Nn]etwork is (?:unreachable|down)|\bENETUNREACH\b",
    ),
    ("onnection timed out|ETIMEDOUT", r"[Cc]onnection timed out|\bETIMEDOUT\b"),
    ("WSA", r"WSAE(?:TIMEDOUT|HOSTUNREACH|NETUNREACH)"),
    ("WSA|rror| code", r"(?:WSA|[Ee]rror|code)\D{0,8}100(?:60|65|51)\b"),
    (
        "did not properly respond",
        r"connected (?:party|host) (?:did not properly respond|has failed to respond)",
    ),
    ("unreachable host|unreachable network", r"attempted to an unreachable (?:host|network)"),
    ("ink is Down|ink is down|ost carrier", r"(?:NIC )?Link is [Dd]own|Lost carrier"),
    unless=r"huggingface|https?://|ntp|timesyncd|\bapt\b|dnf",
)

OTHER_BUILD = kind(
    "another build",
    "the other side of an RPC connection, or a library, is of another build",
    ("Unknown command:", r"Unknown command: \d+"),
    ("invalid tensor type received", r"invalid tensor type received"),
    ("error deserializing tensor", r"error deserializing tensors?\b"),
    ("ailed to create", r"\[\w+\] failed to create (?:source|graph|view_src) node"),
    ("incompatible API version", r"incompatible API version \(backend: \d+, current: \d+\)"),
    ("undefined symbol", r"undefined symbol: \S*(?:ggml|llama)"),
    ("xit|xc000|xC000|longer running", r"(?i)\b0xc0000139\b|\b3221225785\b"),
    ("rocedure entry point", r"procedure entry point \S*(?:ggml|llama)\S* could not be located"),
)

USES_RPC = kind(
    "RPC devices",
    "RPC devices are used",
    ("RPC", r"\bRPC\d*\["),
    ("using device RPC", r"using device RPC"),
    ("--rpc", r"--rpc[ =,'\"]"),
    trouble=False,
)

BACKEND_SIDE = kind(
    "rpc-server",
    "the log of an rpc-server",
    ("Starting RPC server", r"Starting RPC server v?\d"),
    ("ccepted client connection", r"Accepted client connection"),
    ("create_backend: using", r"create_backend: using"),
    ("Never expose the RPC server", r"Never expose the RPC server"),
    ("local cache    :", r"^\s*local cache\s+: "),
    trouble=False,
)

KINDS = (VERSION_MISMATCH, UNREACHABLE, LOST, LOST_FRAME, NO_WAY, OTHER_BUILD, USES_RPC, BACKEND_SIDE)
