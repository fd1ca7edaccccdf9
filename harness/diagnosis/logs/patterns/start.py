"""Lines of a start that went wrong: the model's file, the arguments, the port, the disk."""

from harness.diagnosis.logs.pattern import START, kind

MODEL_INVALID = kind(
    "model refused",
    "the model's file cannot be used",
    ("nvalid magic|ad magic", r"[Ii]nvalid magic|[Bb]ad (?:file )?magic"),
    (
        "ailed to read magic",
        r"gguf\w*: failed to read (?:magic|header|key-value pairs|tensor info|tensor data)",
    ),
    (
        "GGUF",
        r"failed to open GGUF file|GGUFv1 is no longer supported|bad GGUF version|has invalid GGUF type",
    ),
    ("GGUF", r"this GGUF file (?:is )?version|GGUF (?:split|data section)|not a (?:valid )?GGUF"),
    (
        "gguf_init_from_file",
        r"gguf_init_from_file\w*: (?:failed to|invalid|tensor|key|number|duplicate|alignment|this)",
    ),
    ("file bounds", r"is not within (?:the )?file bounds"),
    ("corrupted or incomplete", r"model is corrupted or incomplete"),
    ("corrupted model", r"corrupted model: \d+ tensors expected"),
    ("unexpectedly reached end of file", r"unexpectedly reached end of file"),
    (
        "nknown model architecture|nsupported model architecture|nknown architecture",
        r"(?:unknown|unsupported) (?:model )?architecture",
    ),
    (
        "nknown pre-tokenizer|nknown tokenizer|nknown type|nknown quant",
        r"unknown (?:pre-tokenizer type|tokenizer|quantization)",
    ),
    ("missing tensor", r"missing tensor '?\S"),
    ("number of tensors|tensors created", r"wrong number of tensors; expected|too many tensors created"),
    ("has wrong shape|has wrong type", r"tensor '\S+' has wrong (?:shape|type)"),
    (
        "has invalid ggml type|has invalid number|has offset|has invalid data",
        r"tensor '\S*' has (?:invalid|offset)",
    ),
    (
        "invalid split|illegal split|GGUF split|missing gguf split|split file",
        r"(?:invalid|illegal|missing gguf) split|failed to load GGUF split",
    ),
    ("key not found in model", r"key not found in model"),
    ("annot find tokenizer", r"cannot find tokenizer (?:merges|vocab) in model"),
    ("error loading model", r"error loading model (?:architecture|hyperparameters|vocabulary)"),
    (
        "error loading model: ",
        r"error loading model: (?:failed to open|invalid|unknown|unsupported|llama_model_l|\w+_tensor)",
    ),
    ("found tensors with invalid data", r"found tensors with invalid data"),
    ("cannot be used as main model", r"CLIP cannot be used as main model"),
    ("CreateFileMapping|MapViewOfFile", r"(?:CreateFileMapping\w|MapViewOfFile) failed"),
    (
        "nsupported GGML|nsupported model version|ld quantization",
        r"unsupported (?:model version|file version)",
    ),
    ("invalid file magic", r"invalid file magic"),
)

MODEL_FAILED = kind(
    "load failed",
    "the load failed, and this line does not say of what",
    ("error loading model", r"error loading model\b"),
    ("ailed to load m|ailed to load draft m", r"[Ff]ailed to load (?:multimodal |draft )?model\b"),
    ("unable to load model", r"unable to load model\b"),
    ("model loading error", r"exiting due to model loading error"),
    ("exception loading model", r"exception loading model"),
)

BAD_ARGUMENTS = kind(
    "argument refused",
    "an argument is unknown, or its value cannot be used",
    (
        "error: unknown|error: invalid",
        r"error: (?:unknown|invalid) (?:argument|parameter|option|device|memory size|number of|value|preset)",
    ),
    ("rror: ", r"[Ee]rror: unrecognized (?:argument|option)s?"),
    (
        "nknown argument|nvalid argument",
        r"^(?:\S*(?:llama|rpc|server|main)\S*: )?(?:unknown|[Ii]nvalid) argument\b(?!.*(?:tensor|ggml))",
    ),
    ("nvalid parameter|nknown parameter", rf"(?:error: |{START})(?:[Ii]nvalid|[Uu]nknown) parameters?\b"),
    ("error while handling argument", r"error while handling argument"),
    ("error while handling environment", r"error while handling environment variable"),
    ("error parsing", r"error: (?:error )?parsing (?:argument|command line)"),
    ("expected value for argument", r"expected value for argument"),
    ("argument has been removed", r"the argument has been removed"),
    ("nvalid host address", r"Invalid host address"),
    (
        "not supported in this build",
        r"RPC not supported in this build|the server is built without SSL support",
    ),
    ("no RPC servers specified|no devices specified", r"no (?:RPC servers|devices) specified"),
    ("failed to find RPC", r"(?i)failed to find RPC (?:backend|add server function)"),
    ("is required", r"--model is required|error: .*--\S+ is required"),
    ("invalid HF repo", r"invalid HF repo format"),
    ("nsupported cache type", r"Unsupported cache type"),
    ("invalid value for main_gpu", r"invalid value for main_gpu"),
    (
        "requires flash_attn|requires Flash|Flash Attention",
        r"(?:quantiz\w+|V cache|TENSOR) .*requires? (?:flash_attn|Flash Attention)",
    ),
    ("does not divide n_embd_head", r"cache type \S+ with block size \d+ does not divide"),
    (
        "preset file",
        r"(?:server )?preset file (?:does not exist)?|failed to (?:open|parse) server (?:preset|config)",
    ),
    ("static assets path", r"static assets path not found"),
    ("nvalid option|nrecognized option", r"^\S+: (?:invalid|unrecognized) option"),
    trouble=True,
)

PORT_IN_USE = kind(
    "port in use",
    "the address to listen on is taken",
    (
        "ouldn't bind|ould not bind|ailed to bind",
        r"(?i)(?:couldn't|could not|failed to|cannot) bind (?:to |HTTP |port|server|socket|address)",
    ),
    ("already in use", r"(?i)\bport \d+ is already in use"),
    ("ddress already in use|EADDRINUSE", r"(?i)address (?:is )?already in use|\bEADDRINUSE\b"),
    ("WSA|rror| code|bind", r"WSAEADDRINUSE|(?:WSA|[Ee]rror|code|bind)\D{0,8}10048\b"),
    ("nly one usage of each socket", r"Only one usage of each socket address"),
    (
        "ouldn't start HTTP listener|HTTP server error",
        r"couldn't start HTTP listener|start server error.*bind|HTTP server error.*(?:bind|listen)",
    ),
)

ADDRESS_REFUSED = kind(
    "address refused",
    "the address to listen on is not one of this machine",
    ("annot assign requested address|EADDRNOTAVAIL", r"[Cc]annot assign requested address|\bEADDRNOTAVAIL\b"),
    ("WSA|rror| code|bind", r"WSAEADDRNOTAVAIL|(?:WSA|[Ee]rror|code|bind)\D{0,8}10049\b"),
    ("requested address is not valid", r"requested address is not valid in its context"),
)

SERVER_SOCKET = kind(
    "no server socket",
    "rpc-server could not listen, and does not say why",
    ("ailed to create server socket", r"Failed to create server socket"),
)

DISK_FULL = kind(
    "disk full",
    "a disk has no space left",
    ("o space left", r"[Nn]o space left on device"),
    ("ENOSPC", r"\bENOSPC\b"),
    ("(os error ", r"\(os error (?:28|112)\)"),
    (
        "ot enough space|insufficient disk space|nsufficient space",
        r"(?i)not enough space on (?:the )?dis[kc]|not enough space in|insufficient (?:disk )?space",
    ),
    ("isk quota exceeded|EDQUOT", r"[Dd]isk quota exceeded|\bEDQUOT\b"),
    ("isk full|isk is full|ilesystem full|ile system full", r"(?i)\b(?:disk|file ?system) (?:is )?full\b"),
    ("not enough disk space|not enough free disk", r"(?i)not enough (?:free )?disk space"),
)

KINDS = (
    MODEL_INVALID,
    MODEL_FAILED,
    BAD_ARGUMENTS,
    PORT_IN_USE,
    ADDRESS_REFUSED,
    SERVER_SOCKET,
    DISK_FULL,
)
