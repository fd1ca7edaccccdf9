"""Lines of failed allocations, of OOM kills, and of a GPU, its driver or its kernels that failed."""

from harness.diagnosis.patterns import START, kind

ALLOCATION_FAILED = kind(
    "allocation failed",
    "memory of the host, of a GPU or of a backend could not be allocated",
    "alloc|of mem|of_mem|ofmem|ofdevice|ofhost|of_device|of_host|of_resources|r_out_of|memoryalloc|"
    "fail|insufficient|enomem|paging file|not enough|system memory|memory limit|"
    "cache_init|bad_array",
    # ggml-alloc.c, ggml-backend.cpp, ggml-rpc.cpp: "failed to allocate CUDA0 buffer of size 1234".
    r"failed to allocate \S+ buffer of size",
    r"[Ff]ailed to allocate (?:\S+ )?buffer\b",
    r"[Ff]ailed to allocate (?:\w+ )?(?:compute|output|input|graph|KV|kv)\b",
    r"[Ff]ailed to allocate (?:Metal buffer|context|graph|\d[\d.]* (?:MB|MiB|GiB|bytes))",
    r"unable to allocate (?:backend|\S+) (?:\S+ )?buffer",
    r"failed to reserve (?:graph buffers|initial output buffer)",
    r"alloc_buffer: allocating [\d.]+ Mi?B .*(?:failed|out of memory)",
    r"(?:buffer|memory) alloc\w* of size \d+ failed",
    r"[Mm]emory allocation of size \d+ failed",
    r"(?:cuda|hip|musa|aclrt|sycl::)?[Mm]alloc(?:_device|_host)? failed",
    # The words of the drivers themselves.
    r"(?:CUDA|ROCm|HIP|MUSA|CANN) error:? .*out of memory",
    r"(?:llama|ggml|cuda|hip|alloc|mmap|load|vk|model)\w*\b.*: out of memory",
    rf"{START}(?:\S+: )?(?:error: )?out of memory$",
    r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation",
    r"hipErrorOutOfMemory|kIOGPUCommandBufferCallbackErrorOutOfMemory",
    r"(?:CUBLAS|ROCBLAS|HIPBLAS|MUBLAS)_STATUS_ALLOC_FAILED",
    r"(?:ErrorOutOf(?:Device|Host)Memory|OutOf(?:Device|Host)MemoryError)",
    r"(?:UR_RESULT|PI|ZE_RESULT|VK)_?ERROR_OUT_OF_\w+_MEMORY",
    r"(?:UR_RESULT_ERROR|PI_ERROR|CL)_OUT_OF_RESOURCES",
    r"CL_MEM_OBJECT_ALLOCATION_FAILURE",
    r"can't allocate \d+ Bytes of memory on (?:device|host)",
    r"[Ii]nsufficient (?:Memory|memory)\b|Insufficient system resources",
    # C, C++, POSIX and Windows.
    r"std::bad_alloc|bad_array_new_length",
    r"[Cc]annot allocate memory",
    r"\bENOMEM\b",
    r"[Pp]aging file is too small",
    r"[Nn]ot enough (?:memory|storage) (?:resources|is available|to)",
    r"VirtualAlloc.* failed",
    # Ollama refuses beforehand; llama.cpp of 2024 tells of its cache.
    r"model requires more system memory",
    r"llama_kv_cache_init\(\) failed",
    r"exceeds (?:the )?memory limit",
    unless=r"(?i)m(?:un)?lock|VirtualLock|pinned memory|host memory fallback|skipping reorder"
    r"|prompt cache state|failed to fit params|normal during memory fitting|falling back|will retry|retrying"
    r"|failed to allocate memory for prompt cache",
)

KERNEL_OOM = kind(
    "OOM kill",
    "the kernel or systemd killed the process because memory ran out",
    "kill|oom|to process",
    r"(?i)\bout of memory: kill(?:ed)? process \d+ \((?P<name>[^)]*)\)",
    r"(?i)^(?!.*out of memory: ).*\bkilled process \d+,? (?:\(|UID \d+, \()?(?P<name>[^),]*)",
    r"oom-kill:constraint=.*\btask=(?P<name>[^,]*)",
    r"oom_reaper: reaped process \d+ \((?P<name>[^)]*)\)",
    r"(?i)process of this unit has been killed by the OOM killer",
    r"(?:Failed with result '|[Rr]esult=)oom-kill",
    r"(?:systemd-)?oomd\S* .*[Kk]illed (?P<name>\S+)",
    r"sending SIG(?:KILL|TERM) to process \d+ .*\"(?P<name>[^\"]*)\"",
    r"OOMKilled(?:\"?[:=]\s*\"?true|\b(?!\"?[:=]))",
)

_MEMORY = (
    r"(?i)out.?of.?(?:device|host)?.?memory|OUT_OF_RESOURCES|ALLOC_FAILED|MemoryAllocation"
    r"|Insufficient Memory|alloc\w* failed"
)

GPU_FAILED = kind(
    "GPU failed",
    "CUDA, ROCm, Vulkan, SYCL, Metal or OpenCL reports an error of the device, its driver or a kernel",
    "error|fail|illegal|kernel image|device function|launch failure|device-side|blas_status|"
    "tensile|access fault|gpu core|gpu hang|devicelost|device_lost|device lost|device fault|"
    "ggml_vulkan|native api",
    # ggml-cuda.cu: "CUDA error: <what>", also of ROCm and MUSA; before 2024-03 "CUDA error 98 at".
    r"\b(?:CUDA|ROCm|HIP|MUSA|CANN) error(?:: (?!CUDA)\S| \d+ at|$|\")",
    r"ggml_cuda_compute_forward: \S+ failed",
    r"[Ii]llegal memory access was encountered",
    r"no kernel image is available|device kernel image is invalid",
    r"[Ii]nvalid device function|[Uu]nspecified launch failure",
    r"device-side assert triggered",
    r"\b(?:cudaError|hipError)[A-Z]\w+|\bCUDA_ERROR_[A-Z_]+",
    r"(?:CU|ROC|HIP|MU)BLAS_STATUS_(?!SUCCESS)[A-Z_]+",
    r"rocBLAS error|Tensile\w* .*(?:No such file|not found|Could not load)",
    r"HSA_STATUS_ERROR\w*|Memory access fault by GPU node",
    r"GPU (?:core dump|[Hh]ang)",
    # Vulkan
    r"(?:Error)?DeviceLost(?:Error)?\b|(?:UR_RESULT|PI|ZE_RESULT|VK|CL)?_?ERROR_DEVICE_LOST",
    r"ggml_vulkan: device (?:lost|fault) on",
    r"vk::\S*(?:Error|createInstance|createDevice|Queue::submit|waitForFences|allocate\w*): Error\w+",
    r"Error(?:InitializationFailed|IncompatibleDriver)",
    r"ggml_vulkan: .*(?:pipeline|module) creation failed",
    r"ggml_vulkan: (?:Error|Invalid device index|Device with index|No suitable)",
    r"ggml_vulkan.*[Ii]nvalid device index",
    # SYCL, Level Zero, OpenCL
    r"\bSYCL error\b",
    r"Native API (?:failed|returns)",
    r"level_zero backend failed with error",
    r"\b(?:UR_RESULT|PI|ZE_RESULT)_ERROR_\w+",
    r"ggml_opencl: .*(?:error|failed)",
    # Metal
    r"command buffer \d+ failed with status",
    r"ggml_metal\w*: (?:error: )?(?:failed to (?:create|compile|build|init\w*)|backend is in error)",
    r"kIOGPUCommandBufferCallbackError\w+",
    unless=_MEMORY,
)

GPU_ABSENT = kind(
    "no GPU",
    "a GPU or its driver was not found; the process may continue without it",
    "fail|nvml|no device of|insufficient|no cuda",
    r"failed to initialize (?:CUDA|ROCm|HIP|MUSA|SYCL|Metal|Vulkan)\b",
    r"[Ff]ailed to initialize NVML|NVML: Driver/library version mismatch",
    r"NVIDIA-SMI has failed",
    r"No device of requested type",
    r"driver version is insufficient",
    r"no CUDA-capable device is detected",
)

XID = kind(
    "driver error in the kernel log",
    "the NVIDIA, AMD or Intel driver reports a fault to the kernel",
    "nvrm|fallen off|amdgpu|gpu hang|engine reset|timedout|cat error",
    r"NVRM: Xid \(.*?\): \d+",
    r"GPU has fallen off the bus",
    r"NVRM: (?:RmInitAdapter failed|API mismatch|GPU .*(?:lost|not responding))",
    r"amdgpu.*(?:ring \S+ timeout|GPU reset (?:begin|failed)|page fault|\*ERROR\*)",
    r"\[drm\].*(?:GPU HANG|[Ee]ngine reset)",
    r"\b(?:xe|i915) 0000:.*(?:Timedout job|GPU HANG|[Ee]ngine reset|CAT error)",
)
