"""A small graph of the shapes that the platform has; run by the command line, a process for each step.

The store's address is in STORE_URL; the steps share nothing else.
"""

import os

import dagster as dg

from aframe_assets.store import KeyParts
from aframe_assets.store.io_managers import io_manager_for

SEGMENTS = dg.StaticPartitionsDefinition(["0-4", "4-4", "8-4"])
MANAGER = io_manager_for(os.environ["STORE_URL"], cache_dir=os.environ.get("STORE_CACHE"))
SINGLE = dg.BackfillPolicy.single_run()


def publish(asset, partition, text):
    store = MANAGER.store
    with store.scratch() as folder:
        (folder / "a.txt").write_text(text)
        return store.publish(KeyParts(asset=asset, code_version="1", partition=partition), folder, {"pid": os.getpid()})


@dg.asset(backfill_policy=SINGLE)
def segments():
    return publish("segments", None, "0 4 8")


@dg.op(out=dg.DynamicOut(list), ins={"segments": dg.In()})
def plan(context, segments):
    assert MANAGER.store.open_local(segments, "a.txt").read_text() == "0 4 8"
    for i, key in enumerate(context.partition_keys):
        yield dg.DynamicOutput([key], mapping_key=f"c{i:05d}")


@dg.op
def chunk(keys: list) -> dict:
    return {"pid": os.getpid(), "made": {k: publish("strain", k, f"strain {k}") for k in keys}}


@dg.op
def join(context: dg.AssetExecutionContext, made: list):
    handles = {k: h for part in made for k, h in part["made"].items()}
    for k, h in handles.items():
        context.add_asset_metadata({"std": 1.0, "maker": h.meta["pid"]}, asset_key="strain", partition_key=k)
    assert os.getpid() not in {part["pid"] for part in made}, "each step is a process of its own"
    return handles


@dg.graph_asset(partitions_def=SEGMENTS, backfill_policy=SINGLE, ins={"segments": dg.AssetIn()})
def strain(segments):
    return join(plan(segments).map(chunk).collect())


@dg.asset(backfill_policy=SINGLE)
def total(strain) -> dg.MaterializeResult:
    texts = [MANAGER.store.open_local(h, "a.txt").read_text() for h in strain.values()]
    return dg.MaterializeResult(value=publish("total", None, "|".join(texts)))


defs = dg.Definitions(assets=[segments, strain, total], resources={"io_manager": MANAGER})
