"""A small graph whose steps succeed, fail, vanish and wait; what they did is in ``$TOY``."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import dagster as dg

from aframe_assets.config_load import load_config
from aframe_assets.tags import resources
from aframe_ops.executor.executor import make_executor
from aframe_ops.site import load_site

NOTES = Path(os.environ["TOY"])
ONCE = dg.RetryPolicy(max_retries=1)


def note(file: str, /, **values) -> int:
    """Appends to ``file.jsonl``; returns how many lines there were."""
    path = NOTES / f"{file}.jsonl"
    before = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a") as f:
        f.write(json.dumps({"pid": os.getpid(), "time": time.time(), **values}) + "\n")
    return before


@dg.asset
def fine() -> None:
    print("fine says hello")
    print("fine complains", file=sys.stderr)
    note("fine")


@dg.asset(retry_policy=ONCE)
def flaky() -> None:
    if note("flaky") == 0:
        raise RuntimeError("first time unlucky")


@dg.asset(retry_policy=ONCE)
def killed() -> None:
    if note("killed") == 0:
        os.kill(os.getpid(), signal.SIGKILL)


@dg.asset
def killed_always() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dg.asset(retry_policy=ONCE)
def vanishing() -> None:
    if note("vanishing") == 0:
        os._exit(0)


@dg.asset(retry_policy=ONCE)
def missing() -> None:
    note("missing")
    print("aframe: missing needs fine, which is missing; make it with `aframe run --until fine`", file=sys.stderr, flush=True)
    raise dg.Failure("missing needs fine", allow_retries=False)


@dg.asset
def waiting() -> None:
    import subprocess

    child = subprocess.Popen(["sleep", "60"])
    if note("waiting", child=child.pid) == 0:
        time.sleep(60)
    child.kill()


@dg.asset
def slow() -> None:
    note("slow", seed=load_config().seed, name=load_config().name)
    deadline = time.time() + 30
    while not (NOTES / "go").exists() and time.time() < deadline:
        time.sleep(0.05)


@dg.asset(deps=[slow])
def after_slow() -> None:
    note("after_slow", seed=load_config().seed, name=load_config().name)


def _sized(name: str, cpus: int, memory_gb: float, gpus: int = 0):
    @dg.asset(name=name, op_tags=resources(cpus=cpus, memory_gb=memory_gb, gpus=gpus), group_name="sized")
    def body() -> None:
        start = time.time()
        time.sleep(0.6)
        note(
            "sized",
            name=name,
            start=start,
            stop=time.time(),
            threads=os.environ["OMP_NUM_THREADS"],
            gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )

    return body


SIZED = [_sized("one_a", 1, 1), _sized("one_b", 1, 1), _sized("hungry", 1, 3), _sized("huge", 64, 1)]
SIZED += [_sized(f"on_gpu_{c}", 1, 0.1, 1) for c in "abc"] + [_sized("on_two", 1, 0.1, 2), _sized("on_many", 1, 0.1, 9)]

defs = dg.Definitions(
    assets=[fine, flaky, killed, killed_always, vanishing, missing, waiting, slow, after_slow, *SIZED],
    executor=make_executor(load_site(), load_config() if os.environ.get("AFRAME_CONFIG") else None),
)
