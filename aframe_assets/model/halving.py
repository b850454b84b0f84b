"""Which trials of a study are trained on: asynchronous successive halving (Li et al. 2020, arXiv:1810.05934, algorithm 2), in rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def rungs(first: int | None, last: int, reduction: int) -> list[int]:
    """Epochs after which trials are compared: `first`, `reduction` times as many, and so on, and `last`; None: only `last`."""
    out = []
    while first is not None and first < last:
        out.append(first)
        first *= reduction
    return [*out, last]


def promotions(values: Sequence[Mapping[int, float]], num_rungs: int, reduction: int, slots: int, growing: bool) -> list[tuple[int, int]]:
    """The trials that go on to a next rung, those nearest the last rung first.

    Of the trials that have reached a rung the best 1/reduction, rounded down, go on (algorithm 2, `get_job`). Once a rung can
    get no more trials, at least one of it goes on, as in synchronous halving: so the last rung is reached.

    Args:
        values: of each trial, its value at every rung that it has reached, counted from 0; higher is better, -inf: it failed.
        num_rungs: rungs in all.
        reduction: see above, at least 2.
        slots: go on at most.
        growing: whether new trials are still begun.

    Returns:
        (index of the trial, rung that it goes to).
    """
    out: list[tuple[int, int]] = []
    closed = not growing
    for rung in range(num_rungs - 1):
        there = sorted((t for t, v in enumerate(values) if rung in v), key=lambda t: (-values[t][rung], t))
        best = there[: max(int(closed), len(there) // reduction)]
        going = [(t, rung + 1) for t in best if rung + 1 not in values[t] and values[t][rung] > -math.inf]
        closed = closed and not going
        out = [*going, *out]
    return out[:slots]
