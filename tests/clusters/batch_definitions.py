"""A small graph whose steps succeed, fail, vanish, wait and use memory as jobs; what they did is in ``$TOY``."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import dagster as dg

import aframe_ops
from aframe_assets.config_load import load_config
from aframe_assets.tags import resources
from aframe_ops.executor.executor import make_executor
from aframe_ops.executor.routing import BACKEND_TAG
from aframe_ops.site import load_site

NOTES = Path(os.environ["TOY"])
ONCE = dg.RetryPolicy(max_retries=1)
SMALL = resources(memory_gb=0.6, time_min=10)
SHOWN = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "FROM_SETUP", "PLANTED")
SHOWN += ("BATCH_SYSTEM", "HOSTNAME", "AFRAME_CONFIG", "AFRAME_STEP_LOG", "AFRAME_CODE")


def note(file: str, /, **values) -> int:
    """Appends to ``file.jsonl``; returns how many lines there were."""
    path = NOTES / f"{file}.jsonl"
    before = len(path.read_text().splitlines()) if path.exists() else 0
    seen = {name: os.environ[name] for name in SHOWN if name in os.environ} | {"package": aframe_ops.__file__}
    with path.open("a") as f:
        f.write(json.dumps({"pid": os.getpid(), "time": time.time(), "cwd": os.getcwd(), **seen, **values}) + "\n")
    return before


def until(name: str, seconds: float) -> None:
    """Waits for the file `name` among the notes, and no longer than `seconds`."""
    deadline = time.time() + seconds
    while not (NOTES / name).exists() and time.time() < deadline:
        time.sleep(0.05)


@dg.asset(op_tags=SMALL)
def fine() -> None:
    print("fine says hello")
    print("aframe: fine speaks to the user", file=sys.stderr, flush=True)
    note("fine", seed=load_config().seed)


@dg.asset(op_tags=SMALL, retry_policy=ONCE)
def flaky() -> None:
    if note("flaky") == 0:
        raise RuntimeError("first time unlucky")


@dg.asset(op_tags=SMALL, retry_policy=ONCE)
def hopeless() -> None:
    note("hopeless")
    raise RuntimeError("never lucky")


@dg.asset(op_tags=SMALL, retry_policy=ONCE)
def killed() -> None:
    if note("killed") == 0:
        os.kill(os.getpid(), signal.SIGKILL)


@dg.asset(op_tags=SMALL)
def vanishing() -> None:
    note("vanishing")
    os._exit(0)


@dg.asset(op_tags=resources(memory_gb=0.7, time_min=10), retry_policy=ONCE)
def hungry() -> None:
    """Fits into one and a half times the memory that it asks for, and not into that memory."""
    note("hungry")
    block = bytearray(600_000_000)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(3)


@dg.asset(op_tags=SMALL)
def waiting() -> None:
    note("waiting")
    try:
        until("go", 120)
    except BaseException as e:
        note("interrupted", kind=type(e).__name__)
        raise


@dg.asset(op_tags=SMALL)
def after_waiting() -> None:
    note("after_waiting")


@dg.asset(op_tags=resources(memory_gb=0.6, time_min=1), retry_policy=dg.RetryPolicy(max_retries=1))
def endless() -> None:
    if note("endless") == 0:
        until("never", 300)


@dg.asset(op_tags=resources(memory_gb=0.6, gpus=1, gpu_memory_gb=40, time_min=10))
def on_gpu() -> None:
    note("on_gpu")


@dg.asset(op_tags=resources(cpus=200, memory_gb=0.6))
def impossible() -> None:
    note("impossible")


@dg.asset(op_tags=resources(memory_gb=100_000))
def boundless() -> None:
    note("boundless")


@dg.asset(op_tags={**SMALL, BACKEND_TAG: "local"})
def at_home() -> None:
    note("at_home")


@dg.op(out=dg.DynamicOut(int))
def plan_parts():
    for i in range(int(os.environ.get("TOY_PARTS", "50"))):
        yield dg.DynamicOutput(i, mapping_key=f"p{i:02d}")


@dg.op(tags=SMALL, retry_policy=ONCE)
def part(number: int) -> int:
    if note(f"part{number}") == 0 and number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@dg.op(tags=SMALL)
def collect(numbers: list[int]) -> int:
    note("collected", total=sum(numbers), count=len(numbers))
    return sum(numbers)


@dg.graph_asset
def fanned() -> int:
    return collect(plan_parts().map(part).collect())


defs = dg.Definitions(
    assets=[
        fine,
        flaky,
        hopeless,
        killed,
        vanishing,
        hungry,
        waiting,
        after_waiting,
        endless,
        on_gpu,
        impossible,
        boundless,
        at_home,
        fanned,
    ],
    jobs=[dg.define_asset_job("wait", [waiting, fine])],
    executor=make_executor(load_site(), load_config() if os.environ.get("AFRAME_CONFIG") else None),
)
