"""Whole objects from S3 in parallel ranges, in their order, hashed as they arrive."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from aframe_assets.store.files import WRITE_BYTES

RANGE_BYTES = 8 << 20
PARALLEL = 10
AHEAD = 16
"""So many ranges are on their way or wait for their turn: 128 MB of memory."""

Fetch = Callable[[int, int], bytes]
"""(first byte, number of bytes) -> bytes."""


def in_order(nbytes: int, fetch: Fetch) -> Iterator[bytes]:
    """An object of `nbytes` bytes, part by part; an error of `fetch` ends it."""
    if nbytes <= RANGE_BYTES:
        if nbytes:
            yield fetch(0, nbytes)
        return
    waiting: deque[Future[bytes]] = deque()
    pool = ThreadPoolExecutor(min(PARALLEL, -(-nbytes // RANGE_BYTES)))
    try:
        for first in range(0, nbytes, RANGE_BYTES):
            waiting.append(pool.submit(fetch, first, min(RANGE_BYTES, nbytes - first)))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def save(nbytes: int, fetch: Fetch, target: Path) -> str:
    """Writes an object to the new file `target`; its sha256."""
    digest = hashlib.sha256()
    with target.open("xb", buffering=0) as stream:
        for part in in_order(nbytes, fetch):
            digest.update(part)
            left = memoryview(part)
            while left:  # less is written where the disk is about to be full
                left = left[stream.write(left[:WRITE_BYTES]) :]
    return digest.hexdigest()


def sha256_of(nbytes: int, fetch: Fetch) -> str:
    """sha256 of an object."""
    digest = hashlib.sha256()
    for part in in_order(nbytes, fetch):
        digest.update(part)
    return digest.hexdigest()
