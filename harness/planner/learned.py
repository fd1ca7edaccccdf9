"""Compute buffers learned from the logs of earlier loads: exact where a load of the same shape was seen."""

from harness.contracts.plan import Plan
from harness.llama.gguf import GgufModel
from harness.planner.costs import ComputeBuffers
from harness.planner.memory import cache_cells

Learned = dict[str, dict[str, int]]
"""By shape of a load the bytes of a device's compute buffer, by the place that the device has in it."""

_PLACES = {(True, False): "first", (False, False): "middle", (False, True): "last", (True, True): "only"}


def load_shape(model: GgufModel, build: int | None, context: int, parallel: int, kv_type: str) -> str:
    """What decides the size of the compute buffers besides a device's place, as one key.

    Args:
        build: of llama.cpp; None where it is not known, which then is a shape of its own.
    """
    widths = (model.embedding_length, model.feed_forward_length, model.vocab_size, max(model.heads))
    sizes = "x".join(map(str, widths))
    return f"{build}:{model.architecture}:{sizes}:{cache_cells(context, parallel)}/{parallel}:{kv_type}"


def compute_buffers(learned: Learned, shape: str) -> ComputeBuffers:
    """What earlier loads of this shape printed; empty where there was none."""
    seen = learned.get(shape, {})
    return {place: seen[name] for place, name in _PLACES.items() if name in seen}


def with_buffers(plan: Plan, printed: dict[str, int]) -> Plan:
    """The plan with the compute buffers that its load printed, for backends of one device.

    Args:
        printed: bytes by endpoint.
    """
    single = [e for e in plan.endpoints if sum(share.endpoint == e for share in plan.shares) == 1]
    shares = [
        share.model_copy(update={"compute_bytes": printed[share.endpoint]})
        if share.endpoint in single and share.endpoint in printed
        else share
        for share in plan.shares
    ]
    return plan.model_copy(update={"shares": shares})


def learn(learned: Learned, shape: str, plan: Plan, printed: dict[str, int]) -> Learned:
    """``learned`` and what this load printed.

    Args:
        plan: of the load; only a full distribution over backends of one device each teaches something.
        printed: bytes of the compute buffer by endpoint, as the log has them.
    """
    used = [share for share in plan.shares if share.layers]
    if not plan.distributed or len(used) != len({share.endpoint for share in used}):
        return learned
    seen = dict(learned.get(shape, {}))
    for index, share in enumerate(used):
        if size := printed.get(share.endpoint):
            name = _PLACES[index == 0, index == len(used) - 1]
            seen[name] = size if name not in seen else max(size, seen[name])
    return learned | {shape: seen}
