"""The steps that a profile is made of: what each kind of trial can be told."""

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from harness.contracts.diagnosis import FailureClass
from harness.lab.spec import parse_size
from harness.runs.metrics import LIMITED

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}]}),
]
Names = Annotated[list[str], Field(min_length=1)]


def _one_name(value: object) -> object:
    return [value] if isinstance(value, str) else value


Nodes = Annotated[
    Annotated[int, Field(ge=1)] | Names,
    BeforeValidator(_one_name, json_schema_input_type=Annotated[int, Field(ge=1)] | Names | str),
]
"""How many backends, or which: each by its name or as one of the profile's ``node_sets``."""
Deadline = Annotated[float, Field(gt=0, le=24 * 3600)]
_ONE = {"type": "integer", "minimum": 1}
Count = Annotated[
    int,
    Field(ge=1),
    WithJsonSchema({"anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1}]}),
]
"""A number; in the file also a list of them, for a trial of each."""
_COUNTS = ("prompt_tokens", "generated_tokens", "concurrency")


class Strict(BaseModel):
    """A part of a profile: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid")


class Starve(Strict):
    """Lower one lab node's memory limit for as long as the model is loaded."""

    node: str
    memory: Size = Field(description="the limit, in bytes or as 1.5G")


class PoolStep(Strict):
    """Chat requests to a small model through the pool."""

    kind: Literal["pool"]
    model: str
    requests: int = Field(3, ge=1)
    prompt_tokens: int = Field(35, ge=1)
    generated_tokens: int = Field(32, ge=1)
    deadline_s: Deadline = Field(120, description="per request")


class LoadStep(Strict):
    """Load a model over the backends."""

    kind: Literal["load"]
    model: str
    cache: Literal["cold", "warm"] = "cold"
    nodes: Nodes | None = Field(
        None, description="backends by name or by the name of a node set, or how many; all without it"
    )
    n_gpu_layers: int | None = Field(None, ge=0)
    context: int = Field(2048, ge=128, description="tokens, shared by the slots")
    parallel: int = Field(1, ge=1, le=64, description="slots: requests that are answered at once")
    flags: list[str] = []
    starve: Starve | None = None
    may_not_fit: bool = Field(
        False, description="whether it fits is the question: a refusal for want of memory is an answer"
    )
    expected: FailureClass | None = None
    deadline_s: Deadline = 900


class Limits(Strict):
    """What a request may take to count for goodput: any, and at least one, of these."""

    ttft_s: Deadline | None = None
    tpot_s: Deadline | None = None
    e2e_s: Deadline | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"state one at least: {', '.join(LIMITED)}")
        return self


def stated(limits: Limits | None) -> dict[str, float]:
    """Seconds by figure; empty where nothing is limited."""
    return limits.model_dump(exclude_none=True) if limits else {}


class InferenceStep(Strict):
    """Requests of one prompt length to the loaded model."""

    kind: Literal["inference"]
    model: str
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


class SoakStep(Strict):
    """Requests to the loaded model for a time or a count; an error ends none of the others."""

    kind: Literal["soak"]
    model: str
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


class ParityStep(Strict):
    """The same greedy tokens over the backends as from the coordinator alone."""

    kind: Literal["parity"]
    model: str
    nodes: Nodes | None = Field(None, description="as in a load")
    tokens: int = Field(32, ge=1, le=1024)
    prompt: str = Field("Name the planets of the solar system in order.", min_length=1)
    context: int = Field(2048, ge=128)
    flags: list[str] = Field(
        ["--no-repack"], description="repacked weights are multiplied in another order, and round otherwise"
    )
    expected: FailureClass | None = None
    deadline_s: Deadline = Field(600, description="per load and per request")


class UnloadStep(Strict):
    """Stop the coordinator and read how it ended."""

    kind: Literal["unload"]
    model: str
    expected: FailureClass = FailureClass.STOPPED
    deadline_s: Deadline = 60


class FaultStep(Strict):
    """Cause a failure on one node, undo it, and compare the diagnosis with the cause."""

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
    expected: FailureClass | None = Field(None, description="by default the class that the fault stands for")
    deadline_s: Deadline = Field(180, description="from the injection to the diagnosis")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.fault == "other-build" and self.build is None:
            raise ValueError("other-build needs 'build': another one that is installed on the node")
        if self.fault == "kill-coordinator" and self.moment not in ("prompt", "generating"):
            raise ValueError("kill-coordinator needs one that answers: moment prompt or generating")
        return self


class PinStep(Strict):
    """Change every node over to another build, as playbooks/upgrade.yml does."""

    kind: Literal["pin"]
    model: str = Field(description="of the trials that follow; the change is of all nodes")
    build: int = Field(ge=1)
    expected: FailureClass | None = None
    deadline_s: Deadline = Field(3600, description="a build that no cache has is made first")


Step = PoolStep | LoadStep | InferenceStep | SoakStep | ParityStep | FaultStep | PinStep | UnloadStep
STEPS: dict[str, type[BaseModel]] = {
    "pool": PoolStep,
    "load": LoadStep,
    "inference": InferenceStep,
    "soak": SoakStep,
    "parity": ParityStep,
    "fault": FaultStep,
    "pin": PinStep,
    "unload": UnloadStep,
}


def each_combination(step: object) -> Iterator[Any]:
    """An inference step with lists of counts as one step for each combination; anything else as it is."""
    if not isinstance(step, dict) or step.get("kind") != "inference":
        yield step
        return
    lists = {name: step[name] for name in _COUNTS if isinstance(step.get(name), list) and step[name]}
    for values in product(*lists.values()):
        yield step | dict(zip(lists, values, strict=True))


def step_title(step: Step) -> str:
    """What a trial is called: ``13b-q4_0-cold-load``."""
    if isinstance(step, LoadStep):
        parts = [step.model, step.cache, "load"]
        if step.n_gpu_layers is not None:
            parts.append(f"ngl{step.n_gpu_layers}")
        if step.nodes is not None:
            parts.append(f"{step.nodes if isinstance(step.nodes, int) else len(step.nodes)}-nodes")
        return "-".join([*parts, *(["starved"] if step.starve else [])])
    if isinstance(step, InferenceStep):
        streams = f"-{step.concurrency}-streams" if step.concurrency > 1 else ""
        return f"{step.model}-inference-{step.prompt_tokens}x{step.repeats}{streams}"
    if isinstance(step, FaultStep):
        return f"{step.fault}-{step.node}-{step.moment}"
    if isinstance(step, PinStep):
        return f"pin-{step.build}"
    return f"{step.model}-{step.kind}"
