"""Lines of a start: failures of the model's file, arguments, port or disk; and a load's progress."""

from harness.diagnosis.patterns import START, kind

MODEL_INVALID = kind(
    "model refused",
    "the model's file cannot be used",
    "magic|fail|gguf|bounds|corrupted|end of file|architecture|unknown|missing|wrong|too many|"
    "invalid|offset|split|not found|cannot|unsupported|illegal|error",
    r"[Ii]nvalid magic|[Bb]ad (?:file )?magic",
    r"gguf\w*: failed to read (?:magic|header|key-value pairs|tensor info|tensor data)",
    r"failed to open GGUF file|GGUFv\d is no longer supported|bad GGUF version|has invalid GGUF type",
    r"this GGUF file (?:is )?version|GGUF (?:split|data section)|not a (?:valid )?GGUF",
    r"gguf_init_from_file\w*: (?:failed to|invalid|tensor|key|number|duplicate|alignment|this)",
    r"is not within (?:the )?file bounds",
    r"model is corrupted or incomplete",
    r"corrupted model: \d+ tensors expected",
    r"unexpectedly reached end of file",
    r"(?:unknown|unsupported) (?:model )?architecture",
    r"unknown (?:pre-tokenizer type|tokenizer|quantization)",
    r"missing tensor '?\S",
    r"wrong number of tensors; expected|too many tensors created",
    r"tensor '\S+' has wrong (?:shape|type)",
    r"tensor '\S*' has (?:invalid|offset)",
    r"(?:invalid|illegal|missing gguf) split|failed to load GGUF split",
    r"key not found in model",
    r"cannot find tokenizer (?:merges|vocab) in model",
    r"error loading model (?:architecture|hyperparameters|vocabulary)",
    r"error loading model: (?:failed to open|invalid|unknown|unsupported|llama_model_l|\w+_tensor)",
    r"found tensors with invalid data",
    r"CLIP cannot be used as main model",
    r"(?:CreateFileMapping\w|MapViewOfFile) failed",
    r"unsupported (?:model version|file version)",
    r"invalid file magic",
)

MODEL_FAILED = kind(
    "load failed",
    "the load failed, but not why",
    "error|fail|unable|exception",
    r"error loading model\b",
    r"[Ff]ailed to load (?:multimodal |draft )?model\b",
    r"unable to load model\b",
    r"exiting due to model loading error",
    r"exception loading model",
)

BAD_ARGUMENTS = kind(
    "argument refused",
    "an argument is unknown, or its value cannot be used",
    "error|argument|parameter|not supported|without ssl|no rpc servers|no devices|fail|require|"
    "invalid|unsupported|require|does not divide|preset|static assets|option",
    r"error: (?:unknown|invalid) (?:argument|parameter|option|device|memory size|number of|value|preset)",
    r"[Ee]rror: unrecognized (?:argument|option)s?",
    r"^(?:\S*(?:llama|rpc|server|main)\S*: )?(?:unknown|[Ii]nvalid) argument\b(?!.*(?:tensor|ggml))",
    rf"(?:error: |{START})(?:[Ii]nvalid|[Uu]nknown) parameters?\b",
    r"error while handling argument",
    r"error while handling environment variable",
    r"error: (?:error )?parsing (?:argument|command line)",
    r"expected value for argument",
    r"the argument has been removed",
    r"Invalid host address",
    r"RPC not supported in this build|the server is built without SSL support",
    r"no (?:RPC servers|devices) specified",
    r"(?i)failed to find RPC (?:backend|add server function)",
    r"--model is required|error: .*--\S+ is required",
    r"invalid HF repo format",
    r"Unsupported cache type",
    r"invalid value for main_gpu",
    r"(?:quantiz\w+|V cache|TENSOR) .*requires? (?:flash_attn|Flash Attention)",
    r"cache type \S+ with block size \d+ does not divide",
    r"(?:server )?preset file (?:does not exist)?|failed to (?:open|parse) server (?:preset|config)",
    r"static assets path not found",
    r"^\S+: (?:invalid|unrecognized) option",
    is_failure=True,
)

PORT_IN_USE = kind(
    "port in use",
    "the address to listen on is taken",
    "bind|in use|addrinuse|10048|one usage|listener|server error",
    r"(?i)(?:couldn't|could not|failed to|cannot) bind (?:to |HTTP |port|server|socket|address)",
    r"(?i)\bport \d+ is already in use",
    r"(?i)address (?:is )?already in use|\bEADDRINUSE\b",
    r"WSAEADDRINUSE|(?:WSA|[Ee]rror|code|bind)\D{0,8}10048\b",
    r"Only one usage of each socket address",
    r"couldn't start HTTP listener|start server error.*bind|HTTP server error.*(?:bind|listen)",
)

ADDRESS_REFUSED = kind(
    "address refused",
    "the address to listen on is not one of this machine",
    "assign requested|addrnotavail|10049|requested address",
    r"[Cc]annot assign requested address|\bEADDRNOTAVAIL\b",
    r"WSAEADDRNOTAVAIL|(?:WSA|[Ee]rror|code|bind)\D{0,8}10049\b",
    r"requested address is not valid in its context",
)

SERVER_SOCKET = kind(
    "no server socket",
    "rpc-server could not listen, but not why",
    "fail",
    r"Failed to create server socket",
)

DISK_FULL = kind(
    "disk full",
    "a disk has no space left",
    "space|enospc|os error|quota|edquot|full",
    r"[Nn]o space left on device",
    r"\bENOSPC\b",
    r"\(os error (?:28|112)\)",
    r"(?i)not enough space on (?:the )?dis[kc]|not enough space in|insufficient (?:disk )?space",
    r"[Dd]isk quota exceeded|\bEDQUOT\b",
    r"(?i)\b(?:disk|file ?system) (?:is )?full\b",
    r"(?i)not enough (?:free )?disk space",
)

LOAD = kind(
    "load report",
    "llama-server loads a model: its build, buffer sizes, offloaded layers",
    "loading model|buffer size|offloaded|build",
    r"loading model tensors",
    r"buffer size =",
    r"offloaded \d+/\d+ layers",
    r"\bbuild(?:_info)?: |print_info: build \d",
    is_failure=False,
)
