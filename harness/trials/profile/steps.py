"""The steps of a profile: keys, title, place in an order and assumed time of each kind of trial."""

from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from harness.contracts.diagnosis import FailureClass
from harness.trials.profile.base_step import BaseStep, Count, Deadline, Limits, Nodes, Pace, Size, Starve

COUNTS = ("prompt_tokens", "generated_tokens", "concurrency")
FAULT_S = 20.0
"""From the injection until the backend serves again."""
PIN_S = 120.0
"""To change all nodes over to a build that a cache has."""


class PoolStep(BaseStep):
    """Chat requests to a small model through the pool."""

    uses_pool = True

    kind: Literal["pool"]
    requests: int = Field(3, ge=1)
    prompt_tokens: int = Field(35, ge=1)
    generated_tokens: int = Field(32, ge=1)
    deadline_s: Deadline = Field(120, description="per request")

    def assumed_s(self, pace: Pace) -> float:
        return pace.requests_s(self.requests, self.prompt_tokens, self.generated_tokens)


class LoadStep(BaseStep):
    """Load a model over the backends."""

    loads_itself = True

    kind: Literal["load"]
    cache: Literal["cold", "warm"] = "cold"
    nodes: Nodes | None = Field(None, description="backends by name, or how many; all without it")
    n_gpu_layers: int | None = Field(None, ge=0)
    context: int = Field(2048, ge=128, description="tokens, shared by the slots")
    parallel: int = Field(1, ge=1, le=64, description="slots: requests that are answered at once")
    flags: list[str] = Field([])
    starve: Starve | None = None
    may_not_fit: bool = Field(
        False, description="whether it fits is the question: a refusal for want of memory is an answer"
    )
    expected: FailureClass | None = None
    deadline_s: Deadline = 900

    @property
    def title(self) -> str:
        parts = [self.model, self.cache, "load"]
        if self.n_gpu_layers is not None:
            parts.append(f"ngl{self.n_gpu_layers}")
        if self.nodes is not None:
            parts.append(f"{self.nodes if isinstance(self.nodes, int) else len(self.nodes)}-nodes")
        return "-".join([*parts, *(["starved"] if self.starve else [])])

    @property
    def begins_block(self) -> bool:
        return self.cache == "cold"

    @property
    def repeats_split(self) -> bool:
        """Whether it takes the split of an earlier load of the same parameters."""
        return self.cache == "warm" or self.starve is not None

    def assumed_s(self, pace: Pace) -> float:
        return pace.cold_load_s if self.cache == "cold" else pace.warm_load_s


class InferenceStep(BaseStep):
    """Requests of one prompt length to the loaded model."""

    kind: Literal["inference"]
    prompt_tokens: Count
    generated_tokens: Count
    concurrency: Count = Field(
        1, description="requests in flight at once; those beyond the load's slots wait"
    )
    repeats: int = Field(1, ge=1, description="measured requests in all, as many as are in flight or more")
    limits: Limits | None = Field(None, description="of a request that counts for goodput")
    expected: FailureClass | None = None
    deadline_s: Deadline = Field(600, description="per request")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.repeats < self.concurrency:
            raise ValueError(f"{self.repeats} repeats are never {self.concurrency} in flight; raise repeats")
        return self

    @property
    def title(self) -> str:
        streams = f"-{self.concurrency}-streams" if self.concurrency > 1 else ""
        return f"{self.model}-inference-{self.prompt_tokens}x{self.repeats}{streams}"

    def assumed_s(self, pace: Pace) -> float:
        return pace.requests_s(self.repeats, self.prompt_tokens, self.generated_tokens)


class SoakStep(BaseStep):
    """Requests to the loaded model for a time or a count; an error ends none of the others."""

    kind: Literal["soak"]
    duration_s: Deadline | None = Field(None, description="no request is begun after so many seconds")
    requests: int | None = Field(None, ge=1, description="at most so many")
    prompt_tokens: int = Field(35, ge=1)
    generated_tokens: int = Field(16, ge=1)
    concurrency: int = Field(1, ge=1)
    limits: Limits | None = Field(None, description="of a request that counts for goodput")
    expected: FailureClass | None = None
    deadline_s: Deadline = Field(600, description="per request")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.duration_s is None and self.requests is None:
            raise ValueError("a soak needs duration_s, requests, or both")
        return self

    def assumed_s(self, pace: Pace) -> float:
        requests_s = pace.requests_s(self.requests or 1, self.prompt_tokens, self.generated_tokens)
        if self.duration_s is None:
            return requests_s
        return min(self.duration_s, requests_s) if self.requests else self.duration_s


class ParityStep(BaseStep):
    """The same greedy tokens over the backends as from the coordinator alone."""

    loads_itself = True
    ends_unloaded = True

    kind: Literal["parity"]
    nodes: Nodes | None = Field(None, description="as in a load")
    tokens: int = Field(32, ge=1, le=1024)
    prompt: str = Field("Name the planets of the solar system in order.", min_length=1)
    context: int = Field(2048, ge=128)
    flags: list[str] = Field(
        ["--no-repack"], description="repacked weights are multiplied in another order, and round otherwise"
    )
    expected: FailureClass | None = None
    deadline_s: Deadline = Field(600, description="per load and per request")

    def assumed_s(self, pace: Pace) -> float:
        return 2 * (pace.cold_load_s + self.tokens * pace.token_s)


class UnloadStep(BaseStep):
    """Stop the coordinator and read how it ended."""

    ends_unloaded = True

    kind: Literal["unload"]
    expected: FailureClass = FailureClass.STOPPED
    deadline_s: Deadline = 60


class FaultStep(BaseStep):
    """Cause a failure on one node, undo it, and compare the diagnosis with the cause."""

    loads_itself = True
    ends_unloaded = True

    kind: Literal["fault"]
    model: str = Field(description="the smaller the quicker; it goes over the backends")
    fault: Literal[
        "kill-backend",
        "freeze-backend",
        "kill-coordinator",
        "squeeze-memory",
        "starve-into-swap",
        "cut-link",
        "slow-link",
        "small-cache-disk",
        "other-build",
        "closed-port",
        "taken-port",
        "wrong-flag",
    ]
    node: str
    moment: Literal["idle", "loading", "prompt", "generating"] = Field(
        "generating",
        description="idle: before a load; the others: while one, a prompt or an answer is under way",
    )
    after_s: float = Field(0, ge=0, description="seconds into that moment")
    build: int | None = Field(None, ge=1, description="of other-build")
    memory: Size | None = Field(None, description="of starve-into-swap: what the machine is held to")
    context: int = Field(2048, ge=128)
    expected: FailureClass | None = Field(None, description="by default the class of the fault")
    deadline_s: Deadline = Field(180, description="from the injection to the diagnosis")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.fault == "other-build" and self.build is None:
            raise ValueError("other-build needs 'build': another one that is installed on the node")
        if self.fault == "kill-coordinator" and self.moment not in ("prompt", "generating"):
            raise ValueError("kill-coordinator needs one that answers: moment prompt or generating")
        return self

    @property
    def title(self) -> str:
        return f"{self.fault}-{self.node}-{self.moment}"

    def assumed_s(self, pace: Pace) -> float:
        return pace.cold_load_s + FAULT_S


class PinStep(BaseStep):
    """Change every node over to another build, as playbooks/upgrade.yml does."""

    loads_itself = True
    ends_unloaded = True

    kind: Literal["pin"]
    model: str = Field(description="of the trials that follow; the change is of all nodes")
    build: int = Field(ge=1)
    expected: FailureClass | None = None
    deadline_s: Deadline = Field(3600, description="a build that no cache has is made first")

    @property
    def title(self) -> str:
        return f"pin-{self.build}"

    def assumed_s(self, pace: Pace) -> float:
        return PIN_S


Step = PoolStep | LoadStep | InferenceStep | SoakStep | ParityStep | FaultStep | PinStep | UnloadStep
STEPS: dict[str, type[BaseStep]] = {
    get_args(step.__annotations__["kind"])[0]: step for step in get_args(Step)
}


def each_combination(step: object) -> Iterator[Any]:
    """An inference step with lists of counts as one step for each combination; anything else as it is."""
    if not isinstance(step, dict) or step.get("kind") != "inference":
        yield step
        return
    lists = {name: step[name] for name in COUNTS if isinstance(step.get(name), list) and step[name]}
    for values in product(*lists.values()):
        yield step | dict(zip(lists, values, strict=True))
