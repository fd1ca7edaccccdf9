"""Lines of a process that did not get the memory it asked for, and of the kernel taking memory back."""

from harness.diagnosis.logs.pattern import START, kind

ALLOCATION_FAILED = kind(
    "allocation failed",
    "memory of the host, of a GPU or of a backend was asked for and not given",
    # ggml-alloc.c, ggml-backend.cpp, ggml-rpc.cpp: "failed to allocate CUDA0 buffer of size 1234".
    ("ailed to allocate", r"failed to allocate \S+ buffer of size"),
    ("ailed to allocate", r"[Ff]ailed to allocate (?:\S+ )?buffer\b"),
    ("ailed to allocate", r"[Ff]ailed to allocate (?:\w+ )?(?:compute|output|input|graph|KV|kv)\b"),
    (
        "ailed to allocate",
        r"[Ff]ailed to allocate (?:Metal buffer|context|graph|\d[\d.]* (?:MB|MiB|GiB|bytes))",
    ),
    ("unable to allocate", r"unable to allocate (?:backend|\S+) (?:\S+ )?buffer"),
    ("ailed to reserve", r"failed to reserve (?:graph buffers|initial output buffer)"),
    ("alloc_buffer", r"alloc_buffer: allocating [\d.]+ Mi?B .*(?:failed|out of memory)"),
    ("alloc of size", r"(?:buffer|memory) alloc\w* of size \d+ failed"),
    ("llocation of size", r"[Mm]emory allocation of size \d+ failed"),
    ("alloc failed", r"(?:cuda|hip|musa|aclrt|sycl::)?[Mm]alloc(?:_device|_host)? failed"),
    # The words of the drivers themselves.
    ("ut of memory", r"(?:CUDA|ROCm|HIP|MUSA|CANN) error:? .*out of memory"),
    ("ut of memory", r"(?:llama|ggml|cuda|hip|alloc|mmap|load|vk|model)\w*\b.*: out of memory"),
    ("ut of memory", rf"{START}(?:\S+: )?(?:error: )?out of memory$"),
    ("UT_OF_MEMORY|emoryAllocation|rOutOfMemory", r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"),
    ("rOutOfMemory", r"hipErrorOutOfMemory|kIOGPUCommandBufferCallbackErrorOutOfMemory"),
    ("ALLOC_FAILED", r"(?:CUBLAS|ROCBLAS|HIPBLAS|MUBLAS)_STATUS_ALLOC_FAILED"),
    (
        "OutOfDeviceMemory|OutOfHostMemory",
        r"(?:ErrorOutOf(?:Device|Host)Memory|OutOf(?:Device|Host)MemoryError)",
    ),
    ("OUT_OF_DEVICE_MEMORY|OUT_OF_HOST_MEMORY", r"(?:UR_RESULT|PI|ZE_RESULT|VK)_?ERROR_OUT_OF_\w+_MEMORY"),
    ("OUT_OF_RESOURCES", r"(?:UR_RESULT_ERROR|PI_ERROR|CL)_OUT_OF_RESOURCES"),
    ("OBJECT_ALLOCATION_FAILURE", r"CL_MEM_OBJECT_ALLOCATION_FAILURE"),
    ("can't allocate", r"can't allocate \d+ Bytes of memory on (?:device|host)"),
    ("nsufficient", r"[Ii]nsufficient (?:Memory|memory)\b|Insufficient system resources"),
    # C, C++, POSIX and Windows.
    ("bad_alloc", r"std::bad_alloc|bad_array_new_length"),
    ("annot allocate memory", r"[Cc]annot allocate memory"),
    ("ENOMEM", r"\bENOMEM\b"),
    ("paging file is too small", r"[Pp]aging file is too small"),
    ("ot enough memory|ot enough storage", r"[Nn]ot enough (?:memory|storage) (?:resources|is available|to)"),
    ("irtualAlloc", r"VirtualAlloc.* failed"),
    # Ollama refuses beforehand; llama.cpp of 2024 tells of its cache.
    ("more system memory", r"model requires more system memory"),
    ("_cache_init() failed", r"llama_kv_cache_init\(\) failed"),
    ("MemoryMax|memory limit", r"exceeds (?:the )?memory limit"),
    unless=r"(?i)m(?:un)?lock|VirtualLock|pinned memory|host memory fallback|skipping reorder"
    r"|prompt cache state|failed to fit params|normal during memory fitting|falling back|will retry|retrying"
    r"|failed to allocate memory for prompt cache",
)

KERNEL_OOM = kind(
    "OOM kill",
    "the kernel or systemd killed it for want of memory",
    ("ut of memory", r"(?i)\bout of memory: kill(?:ed)? process \d+ \((?P<name>[^)]*)\)"),
    (
        "illed process",
        r"(?i)^(?!.*out of memory: ).*\bkilled process \d+,? (?:\(|UID \d+, \()?(?P<name>[^),]*)",
    ),
    ("oom-kill:", r"oom-kill:constraint=.*\btask=(?P<name>[^,]*)"),
    ("oom_reaper", r"oom_reaper: reaped process \d+ \((?P<name>[^)]*)\)"),
    ("OOM killer", r"(?i)process of this unit has been killed by the OOM killer"),
    ("oom-kill", r"(?:Failed with result '|[Rr]esult=)oom-kill"),
    ("systemd-oomd|oomd", r"(?:systemd-)?oomd\S* .*[Kk]illed (?P<name>\S+)"),
    ("earlyoom|SIGKILL to process", r"sending SIG(?:KILL|TERM) to process \d+ .*\"(?P<name>[^\"]*)\""),
    ("OOMKilled", r"OOMKilled(?:\"?[:=]\s*\"?true|\b(?!\"?[:=]))"),
)

KERNEL_OOM_ASKED = kind(
    "OOM killer called",
    "a process called the kernel's OOM killer",
    ("invoked oom-killer", r"(?P<name>\S+) invoked oom-killer"),
)

KINDS = (ALLOCATION_FAILED, KERNEL_OOM, KERNEL_OOM_ASKED)
