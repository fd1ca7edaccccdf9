import pytest
from harness.router.routing import Route, choose_route

LARGE = 1000


@pytest.mark.parametrize(
    ("file_bytes", "pool_models", "expected"),
    [
        (None, ["m"], Route.POOL),
        (999, ["m"], Route.POOL),
        (1000, ["m"], Route.COORDINATOR),
        (1000, [], Route.COORDINATOR),
        (1, [], Route.COORDINATOR),
        (None, ["other"], None),
    ],
    ids=[
        "pool alone has it",
        "small and in the pool",
        "large though in the pool",
        "large",
        "small but not in the pool",
        "nobody has it",
    ],
)
def test_route_follows_from_size_and_place(
    file_bytes: int | None, pool_models: list[str], expected: Route | None
) -> None:
    decision = choose_route("m", file_bytes=file_bytes, pool_models=pool_models, large_model_bytes=LARGE)
    assert (decision.route if decision else None) == expected


def test_decision_says_which_fact_decided() -> None:
    decision = choose_route("m", file_bytes=2000, pool_models=["m"], large_model_bytes=LARGE)
    assert decision is not None
    assert decision.reason == "2000 bytes >= large_model_bytes 1000"
