"""Which tensors a plan leaves to each backend's cache."""

from harness.llama.gguf import GgufModel
from harness.llama.rpc.messages import HASH_THRESHOLD_BYTES
from harness.planner.forecast import cached_tensors
from harness.planner.placement import make_plan
from tests.unit.model_headers import backends, model


def _names(facts: GgufModel, *gib: float) -> list[list[str]]:
    found = cached_tensors(facts, make_plan(facts, backends(*gib)))
    return [[tensor.name for tensor in tensors] for tensors in found.values()]


def test_each_large_tensor_of_the_layers_is_in_exactly_one_cache() -> None:
    facts = model("13b", "Q4_0")
    placed = [name for names in _names(facts, 4, 4, 4) for name in names]
    large = [
        t.name for t in facts.tensors if t.bytes > HASH_THRESHOLD_BYTES and t.name != "token_embd.weight"
    ]
    assert sorted(placed) == sorted(large)


def test_caches_follow_the_layers_of_the_plan() -> None:
    facts = model("13b", "Q4_0")
    plan = make_plan(facts, backends(4, 4, 4))
    first, *_, last = cached_tensors(facts, plan).values()
    assert {t.layer for t in first} == set(range(plan.shares[0].layers))
    assert "output.weight" in {t.name for t in last}


def test_tied_output_is_cached_where_the_output_layer_is() -> None:
    facts = model("1b", "Q8_0")
    assert facts.tensor("output.weight") is None
    first, last = _names(facts, 4, 4)
    assert "token_embd.weight" in last
    assert "token_embd.weight" not in first


def test_layers_that_stay_at_home_are_in_no_cache() -> None:
    facts = model("13b", "Q4_0")
    assert cached_tensors(facts, make_plan(facts, backends(4, 4, 4), n_gpu_layers=0)) == {}
    part = cached_tensors(facts, make_plan(facts, backends(4, 4), n_gpu_layers=11))
    assert min(t.layer for tensors in part.values() for t in tensors if t.layer is not None) == 30
