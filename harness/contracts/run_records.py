"""What a run records. Times are UTC nanoseconds (``*_ns``), durations seconds (``*_s``), memory bytes."""

import json
from enum import StrEnum
from typing import Any

from pydantic import Field

from harness.contracts import Record
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis

SCHEMA_VERSION = 1


class Outcome(StrEnum):
    """How a trial ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"


class Request(Record):
    """One request as the client saw it, beside the server's own figures. A line of requests.jsonl."""

    trial: str
    index: int
    warmup: bool = False
    route: str
    """``pool`` or ``coordinator``, from the router's response header."""
    model: str
    sent_ns: int
    token_ns: list[int] = []
    """Arrival of each non-empty token."""
    done_ns: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    server: dict[str, float] = {}
    """llama.cpp ``timings`` of this request: prompt_n, prompt_ms, predicted_n, predicted_ms, ..."""
    text: str = ""
    token_ids: list[int] = []
    """Of each token, where the request asked for ``logprobs``."""
    logprobs: list[float] = []
    """Natural logarithm of each token's probability, likewise."""
    status: int | None = None
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """First non-empty token - request sent."""
        return (self.token_ns[0] - self.sent_ns) / 1e9 if self.token_ns else None

    @property
    def e2e_s(self) -> float | None:
        """Last token - request sent."""
        return (self.token_ns[-1] - self.sent_ns) / 1e9 if self.token_ns else None

    @property
    def tpot_s(self) -> float | None:
        """(E2E - TTFT) / (n - 1), n = completion tokens as the server counted them."""
        if not self.token_ns or not self.completion_tokens or self.completion_tokens < 2:
            return None
        return (self.token_ns[-1] - self.token_ns[0]) / 1e9 / (self.completion_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Gaps between successive tokens."""
        return [(b - a) / 1e9 for a, b in zip(self.token_ns, self.token_ns[1:], strict=False)]


class Trial(Record):
    """One measured attempt. A line of trials.jsonl, written when the trial has ended."""

    id: str
    """``03-13b-cold-load``: unique in its run."""
    kind: str
    """``pool``, ``load``, ``inference``, ..."""
    model: str
    started_ns: int
    ended_ns: int
    outcome: Outcome
    answer: str
    """One sentence: the result."""
    expected: str | None = None
    """The class that the profile expects (``not_distributed``, ``swap_thrash``); None where success is."""
    coordinator: CoordinatorState | None = None
    diagnosis: Diagnosis | None = None
    metrics: dict[str, float] = {}
    """Figures of the trial, each named with its unit: ``load_s``, ``ttft_s_median``, ``tokens_per_s``."""
    peak: dict[str, dict[str, int]] = {}
    """Per node: ``used_bytes``, ``swap_bytes``, ``rpc_rss_bytes``, ``rpc_swap_bytes`` at their highest."""
    details: dict[str, Any] = {}

    @property
    def step(self) -> dict[str, Any]:
        """The profile's step, by parameter; empty in runs recorded before it was kept."""
        text = self.details.get("step")
        return dict(json.loads(text)) if isinstance(text, str) else {}


class Event(Record):
    """One moment of a run. A line of events.jsonl."""

    time_ns: int
    kind: str
    """``run_start``, ``trial_start``, ``trial_end``, ``signal``, ``exit``, ``warning``, ``run_end``, ..."""
    trial: str | None = None
    node: str | None = None
    data: dict[str, Any] = {}


class NodeFacts(Record):
    """One node as it was at the start of the run."""

    name: str
    address: str
    groups: list[str]
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_limit_bytes: int | None = None
    cpu: str | None = None
    cpus: int | None = None
    accelerator: str = "cpu"
    build: int | None = None
    commit: str | None = None
    platform: str | None = None
    binaries: dict[str, str] = {}
    """sha256 of each installed binary, from the build manifest."""
    units: dict[str, dict[str, str]] = {}
    """Per unit the properties that matter: ActiveState, NRestarts, and what its sandbox and limits are."""
    exposure: dict[str, float] = {}
    """Per unit what ``systemd-analyze security`` scores it, 0 (closed) to 10 (open)."""
    interface: str | None = None
    """The one that carries the node's inventory address."""
    link_bits_per_s: float | None = None
    link_source: str | None = None
    """``token bucket`` where tc shapes the link, ``driver`` where the card negotiated it."""


class Verdict(StrEnum):
    """The answer to a question in one word."""

    YES = "yes"
    NO = "no"
    PARTLY = "partly"
    UNKNOWN = "unknown"


class Question(Record):
    """A question of the profile and the run's answer."""

    id: str
    text: str
    answer: str
    """One sentence with its figures; of an unknown one, why it is not known."""
    verdict: Verdict
    trials: list[str] = []
    """Ids of the trials that are the evidence."""
    figures: dict[str, float] = {}


class RunManifest(Record):
    """``run.json``: profile, nodes, models, versions and answers of one run."""

    schema_version: int = SCHEMA_VERSION
    run: str
    """Folder name: ``<UTC>-<profile>``."""
    profile: str
    profile_text: str
    inventory: str
    started_ns: int
    ended_ns: int | None = None
    outcome: Outcome | None = None
    harness_version: str
    harness_commit: str | None = None
    command: list[str]
    versions: dict[str, str] = {}
    nodes: list[NodeFacts] = []
    models: dict[str, dict[str, Any]] = {}
    """Per model: path, bytes, sha256 or shape, architecture, quantisation, ``real`` or ``synthetic``."""
    formulas: dict[str, str] = Field(default_factory=dict)
    estimate_s: float | None = None
    questions: list[Question] = []
    """Answered when the run ends."""
    steps: dict[str, Any] = {}
    """The profile as it ran, models and nodes put in, trials in order: ``--resume`` continues it."""
    resumed_ns: list[int] = []
    """When the run was resumed after an interruption."""
    seed: int | None = None
    """Of the shuffle of the trials; None where they ran in the profile's order."""
    stopped: str | None = None
    """Why an earlier version of the harness left trials out: the run's deadline, or a failure."""

    @property
    def head(self) -> str | None:
        """Name of the node in group ``head``; None where none was recorded."""
        return next((node.name for node in self.nodes if "head" in node.groups), None)
