"""The graph of `benchmarks.executor`: a fan-out of ``$AFRAME_BENCHMARK_STEPS`` steps that do nothing."""

import os

import dagster as dg

from aframe_assets.tags import resources
from aframe_ops.executor.executor import make_executor
from aframe_ops.site import load_site

NOTHING = resources(memory_gb=0.1)
STEPS = int(os.environ.get("AFRAME_BENCHMARK_STEPS", "10"))


@dg.op(out=dg.DynamicOut(int), tags=NOTHING)
def plan():
    for i in range(STEPS):
        yield dg.DynamicOutput(i, mapping_key=f"p{i:04d}")


@dg.op(tags=NOTHING)
def part(number: int) -> int:
    return number


@dg.op(tags=NOTHING)
def collect(numbers: list[int]) -> int:
    return sum(numbers)


@dg.graph_asset
def fanned() -> int:
    return collect(plan().map(part).collect())


ours = os.environ.get("AFRAME_BENCHMARK_EXECUTOR", "aframe") == "aframe"
defs = dg.Definitions(
    assets=[fanned], executor=make_executor(load_site()) if ours else dg.multiprocess_executor.configured({"max_concurrent": 2})
)
