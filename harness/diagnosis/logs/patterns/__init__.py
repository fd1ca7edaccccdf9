"""Kinds of log lines, by domain. Written from llama.cpp's sources (builds 6666 to 11434) and from how
failures look in its public issue threads, 2024 to 2026; what decides a rule is tested on recorded logs."""

from harness.diagnosis.logs.pattern import Kind
from harness.diagnosis.logs.patterns import ends, gpu, load, memory, rpc, start

KINDS: tuple[Kind, ...] = (
    *memory.KINDS,
    *gpu.KINDS,
    *rpc.KINDS,
    *start.KINDS,
    *ends.KINDS,
    *load.KINDS,
)
"""Every kind that a log is searched for."""
