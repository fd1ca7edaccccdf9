"""Lines that ``loadlog`` reads: a load's progress, not trouble."""

from harness.diagnosis.logs.pattern import kind

LOAD = kind(
    "load report",
    "what llama-server says of a load",
    ("loading model tensors", r"loading model tensors"),
    ("buffer size =", r"buffer size ="),
    ("layers to GPU", r"offloaded \d+/\d+ layers"),
    ("build: |build_info: |print_info: build ", r"\bbuild(?:_info)?: |print_info: build \d"),
    trouble=False,
)

KINDS = (LOAD,)
