"""Work done in threads before it is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any, TypeVar

T = TypeVar("T")

READERS = 8
"""Reads under way at once."""


class Ahead:
    """Makes what comes next while what is there is being used, in a thread of its own.

    What is made is a function of its number alone, so it is the same thing, made earlier.

    Args:
        make: number -> what is wanted.
        last: nothing after this number is made before it is asked for.
    """

    def __init__(self, make: Callable[[int], Any], last: int | None = None) -> None:
        self.make, self.last, self.pool = make, last, ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self.number, self.future = -1, None

    def get(self, number: int) -> Any:
        """What `make` gives for `number`; number + 1 is begun.

        Whoever still holds the one before holds two of them while a third is being made: let it go first.
        """
        if self.future is None or self.number != number:
            self.future = self.pool.submit(self.make, number)
        out = self.future.result()
        self.number, self.future = number + 1, None
        if self.last is None or number < self.last:
            self.future = self.pool.submit(self.make, number + 1)
        return out

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class Closed(RuntimeError):
    """What was being made is wanted no more."""


def read_ahead(reads: Sequence[Callable[[], T]], closed: Event | None = None) -> Iterator[T]:
    """Results of `reads` in order, with up to `READERS` of them under way or waiting to be taken.

    Raises:
        Closed: `closed` has been set.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="reads") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for read in reads:
                if closed is not None and closed.is_set():
                    raise Closed("training data were closed")
                waiting.append(pool.submit(read))
                if len(waiting) == READERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
