"""Publishes artifacts in processes that are killed at random moments: STORE CACHE ROUNDS SEED PART_BYTES.

Says on stdout what was published and what was killed, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable

from aframe_assets.store import KeyParts, open_store, s3

url, cache, rounds, seed, part_bytes = sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:])
s3.PART_BYTES = part_bytes
rng = random.Random(seed)
store = open_store(url, cache_dir=cache)


def parts(number: int, version: int) -> KeyParts:
    return KeyParts(asset="background", code_version="1", partition=f"{number}-1", config={"v": version})


def contents(number: int, version: int) -> dict[str, bytes]:
    """The files of an artifact: small ones, and now and then one that goes up in several parts."""
    own = random.Random(f"{number} {version}")
    sizes = [own.randrange(1, 200_000) for _ in range(own.randrange(1, 4))]
    if own.random() < 0.2:
        sizes.append(2 * part_bytes + 1000)
    return {f"{i}.bin": own.randbytes(size) for i, size in enumerate(sizes)}


def publish(number: int, version: int) -> None:
    with store.scratch() as folder:
        for name, data in contents(number, version).items():
            (folder / name).write_bytes(data)
        store.publish(parts(number, version), folder)


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        # the parent's client has opened no connection yet, so that the child may go on with it
        if hasattr(store, "connection"):
            store.connection._made = (os.getpid(), *store.connection._made[1:])
        work()
        os._exit(0)
    finally:
        os._exit(1)


def exit_code(child: int, within: float) -> int | None:
    """None if it goes on after `within` seconds."""
    until = time.monotonic() + within
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.001)


def main() -> None:
    if hasattr(store, "connection"):
        _ = store.client
    killed = done = 0
    began = time.monotonic()
    for number in range(3):
        os.waitpid(forked(lambda number=number: publish(1000 + number, 0)), 0)
    usual = (time.monotonic() - began) / 3
    while killed < rounds:
        number, version = rng.randrange(20), rng.randrange(5)
        began, wait = time.monotonic(), rng.uniform(0, 1.6 * usual)
        child = forked(lambda number=number, version=version: publish(number, version))
        status = exit_code(child, wait)
        if status is None:
            os.kill(child, signal.SIGKILL)
            killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
            usual *= 1.02
        elif status == 0:
            # other work on this machine comes and goes, and what a publish takes with it: neither all nor none are to be killed
            done, usual = done + 1, (usual + time.monotonic() - began) / 2
        else:
            raise SystemExit(f"a publish ended with {status}")
    print(json.dumps({"killed": killed, "done": done, "usual_s": usual}))


if __name__ == "__main__":
    main()
