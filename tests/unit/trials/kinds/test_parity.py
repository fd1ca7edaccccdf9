"""Parity: which tokens of two answers are the same."""

import pytest
from harness.contracts.run_records import Request
from harness.trials.kinds.parity import compare


def answer(ids: list[int], logprobs: list[float] | None = None) -> Request:
    return Request(
        trial="t",
        index=0,
        route="coordinator",
        model="m",
        sent_ns=0,
        token_ids=ids,
        logprobs=[-1.0] * len(ids) if logprobs is None else logprobs,
    )


@pytest.mark.parametrize(
    ("seen", "equal", "compared"),
    [([5, 6, 7], 3, 3), ([5, 9, 7], 1, 3), ([5, 6], 2, 3), ([5, 6, 7, 8], 3, 4), ([], 0, 3)],
)
def test_parity_ends_at_the_first_token_that_differs(seen: list[int], equal: int, compared: int) -> None:
    found = compare(answer([5, 6, 7]), answer(seen))
    assert (found.equal, found.compared, found.same) == (equal, compared, equal == compared)


def test_gap_of_probabilities_is_that_of_the_equal_tokens() -> None:
    found = compare(answer([1, 2, 3], [-1.0, -2.0, -9.0]), answer([1, 2, 4], [-1.0, -2.25, -1.0]))
    assert found.largest_logprob_gap == 0.25
    assert compare(answer([1]), answer([2])).largest_logprob_gap is None


def test_text_tells_of_the_tokens_that_have_no_id() -> None:
    """llama-server gives none for a token that ends inside a character."""
    one, other = answer([1, 2]), answer([1, 2]).model_copy(update={"text": "\u65e5"})
    assert compare(one, one).same
    assert not compare(one, other).same
