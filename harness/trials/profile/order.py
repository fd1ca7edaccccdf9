"""In which order a profile's trials run: blocks that belong together, repeated, shuffled with a seed."""

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import FaultStep, LoadStep, ParityStep, PinStep, PoolStep, Step

SEEDS = 1 << 31


@dataclass(frozen=True)
class Block:
    """Steps that only make sense together, in their order."""

    steps: tuple[Step, ...]
    needs: frozenset[str]
    """Loads of other blocks whose split or caches a step here builds on."""
    gives: frozenset[str]


def shuffle_seed(profile: Profile, asked: int | None) -> int | None:
    """The seed of a run's shuffle: the one typed, else the profile's, else a new one; None for no shuffle."""
    if asked is not None:
        return asked
    if profile.order == "given":
        return None
    return secrets.randbelow(SEEDS) if profile.seed is None else profile.seed


def arrange(profile: Profile, seed: int | None) -> list[Step]:
    """The steps of a run, in the order they run.

    Repeats come round by round, so that what drifts over a run meets every block alike; each round is
    shuffled by itself (a randomised block design; Box, Hunter and Hunter, Statistics for
    Experimenters, chapter 4).

    Args:
        seed: of the shuffle; None keeps the profile's order.
    """
    parts = blocks(profile.trials)
    # A sequence that can be had again, no secret.
    dice = None if seed is None else random.Random(seed)  # noqa: S311
    order: list[Step] = []
    for _ in range(profile.repeats):
        turn = list(parts)
        if dice is not None:
            dice.shuffle(turn)
            turn = _after_what_they_need(turn)
        order += [step for block in turn for step in block.steps]
    return order


def blocks(steps: Sequence[Step]) -> list[Block]:
    """The steps cut where a cold load begins something new, or a pool step stands by itself.

    Requests to a pool's model between a load and what is asked of it stay where they are: what comes after
    them needs the load before them.
    """
    cuts: list[int] = []
    free = True
    for place in range(len(steps) - 1, -1, -1):
        step = steps[place]
        free = _begins(step) or (isinstance(step, PoolStep) and free)
        if free or place == 0:
            cuts.append(place)
    cuts.reverse()
    ends = [*cuts[1:], len(steps)]
    found: list[Block] = []
    for start, end in zip(cuts, ends, strict=True):
        earlier = frozenset(key for block in found for key in block.gives)
        found.append(_block(steps[start:end], earlier))
    return found


def _block(steps: Sequence[Step], earlier: frozenset[str]) -> Block:
    needs: set[str] = set()
    gives: set[str] = set()
    for step in steps:
        if not isinstance(step, LoadStep):
            continue
        key = _key(step)
        if step.cache == "warm" or step.starve:
            if key not in gives:
                needs.add(key)
        else:
            gives.add(key)
    # A load that nothing before it gave is one that the profile's own order leaves out too.
    return Block(tuple(steps), frozenset(needs) & earlier, frozenset(gives))


def _begins(step: Step) -> bool:
    return isinstance(step, ParityStep | FaultStep | PinStep) or (
        isinstance(step, LoadStep) and step.cache == "cold"
    )


def _key(step: LoadStep) -> str:
    return step.model_dump_json(include={"model", "nodes", "n_gpu_layers", "context", "parallel", "flags"})


def _after_what_they_need(turn: list[Block]) -> list[Block]:
    """The same blocks, each moved back no further than behind the first that gives what it needs.

    In the profile's order every need is met by an earlier block, so that some block can always come next.
    """
    waiting, placed = list(turn), list[Block]()
    while waiting:
        given = frozenset(key for block in placed for key in block.gives)
        ready = next(block for block in waiting if block.needs <= given)
        waiting.remove(ready)
        placed.append(ready)
    return placed
