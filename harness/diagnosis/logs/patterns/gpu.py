"""Lines of a GPU, its driver or its kernels that failed; want of memory is in ``memory.py``."""

from harness.diagnosis.logs.pattern import kind

_MEMORY = (
    r"(?i)out.?of.?(?:device|host)?.?memory|OUT_OF_RESOURCES|ALLOC_FAILED|MemoryAllocation"
    r"|Insufficient Memory|alloc\w* failed"
)

GPU_FAILED = kind(
    "GPU failed",
    "CUDA, ROCm, Vulkan, SYCL, Metal or OpenCL reports an error of the device, its driver or a kernel",
    # ggml-cuda.cu: "CUDA error: <what>", also of ROCm and MUSA; before 2024-03 "CUDA error 98 at".
    ("A error|m error|P error|N error", r"\b(?:CUDA|ROCm|HIP|MUSA|CANN) error(?:: (?!CUDA)\S| \d+ at|$|\")"),
    ("_cuda_compute_forward", r"ggml_cuda_compute_forward: \S+ failed"),
    ("llegal memory access", r"[Ii]llegal memory access was encountered"),
    ("no kernel image|evice kernel image", r"no kernel image is available|device kernel image is invalid"),
    ("nvalid device function|nspecified launch", r"[Ii]nvalid device function|[Uu]nspecified launch failure"),
    ("evice-side assert", r"device-side assert triggered"),
    ("cudaError|hipError|CUDA_ERROR_", r"\b(?:cudaError|hipError)[A-Z]\w+|\bCUDA_ERROR_[A-Z_]+"),
    ("BLAS_STATUS_", r"(?:CU|ROC|HIP|MU)BLAS_STATUS_(?!SUCCESS)[A-Z_]+"),
    ("Tensile|rocBLAS error", r"rocBLAS error|Tensile\w* .*(?:No such file|not found|Could not load)"),
    ("HSA_STATUS_ERROR|emory access fault", r"HSA_STATUS_ERROR\w*|Memory access fault by GPU node"),
    ("GPU core|GPU Hang|GPU hang", r"GPU (?:core dump|[Hh]ang)"),
    # Vulkan
    (
        "DeviceLost|DEVICE_LOST",
        r"(?:Error)?DeviceLost(?:Error)?\b|(?:UR_RESULT|PI|ZE_RESULT|VK|CL)?_?ERROR_DEVICE_LOST",
    ),
    ("device lost on|device fault on", r"ggml_vulkan: device (?:lost|fault) on"),
    (
        "vk::",
        r"vk::\S*(?:Error|createInstance|createDevice|Queue::submit|waitForFences|allocate\w*): Error\w+",
    ),
    (
        "ErrorInitializationFailed|ErrorIncompatibleDriver",
        r"Error(?:InitializationFailed|IncompatibleDriver)",
    ),
    ("ipeline creation failed|odule creation failed", r"ggml_vulkan: .*(?:pipeline|module) creation failed"),
    ("ggml_vulkan: ", r"ggml_vulkan: (?:Error|Invalid device index|Device with index|No suitable)"),
    ("nvalid device index", r"ggml_vulkan.*[Ii]nvalid device index"),
    # SYCL, Level Zero, OpenCL
    ("SYCL error", r"\bSYCL error\b"),
    ("Native API", r"Native API (?:failed|returns)"),
    ("level_zero backend failed", r"level_zero backend failed with error"),
    ("UR_RESULT_ERROR|PI_ERROR|ZE_RESULT_ERROR", r"\b(?:UR_RESULT|PI|ZE_RESULT)_ERROR_\w+"),
    ("ggml_opencl: ", r"ggml_opencl: .*(?:error|failed)"),
    # Metal
    ("ommand buffer", r"command buffer \d+ failed with status"),
    (
        "ggml_metal",
        r"ggml_metal\w*: (?:error: )?(?:failed to (?:create|compile|build|init\w*)|backend is in error)",
    ),
    ("kIOGPUCommandBuffer", r"kIOGPUCommandBufferCallbackError\w+"),
    unless=_MEMORY,
)

GPU_ABSENT = kind(
    "no GPU",
    "a GPU or its driver was not found; the process may well go on without it",
    ("ailed to initialize", r"failed to initialize (?:CUDA|ROCm|HIP|MUSA|SYCL|Metal|Vulkan)\b"),
    ("ailed to initialize NVML|NVML", r"[Ff]ailed to initialize NVML|NVML: Driver/library version mismatch"),
    ("NVIDIA-SMI has failed", r"NVIDIA-SMI has failed"),
    ("o device of requested type", r"No device of requested type"),
    ("river version is insufficient", r"driver version is insufficient"),
    ("no CUDA-capable device", r"no CUDA-capable device is detected"),
)

XID = kind(
    "driver error in the kernel log",
    "the NVIDIA, AMD or Intel driver reports a fault to the kernel",
    ("NVRM: Xid", r"NVRM: Xid \(.*?\): \d+"),
    ("fallen off the bus", r"GPU has fallen off the bus"),
    ("NVRM: ", r"NVRM: (?:RmInitAdapter failed|API mismatch|GPU .*(?:lost|not responding))"),
    ("amdgpu", r"amdgpu.*(?:ring \S+ timeout|GPU reset (?:begin|failed)|page fault|\*ERROR\*)"),
    ("GPU HANG|ngine reset", r"\[drm\].*(?:GPU HANG|[Ee]ngine reset)"),
    (
        "Timedout job|GPU HANG|ngine reset|CAT error",
        r"\b(?:xe|i915) 0000:.*(?:Timedout job|GPU HANG|[Ee]ngine reset|CAT error)",
    ),
)

KINDS = (GPU_FAILED, GPU_ABSENT, XID)
