"""One step that makes an artifact of the demo's key as a job of the played batch system; what it did is in ``$TOY``."""

import json
import os
import sys
import time
from pathlib import Path

import dagster as dg

sys.path.insert(0, str(Path(__file__).parent))

from lease_play import install

from aframe_assets.config_load import load_config
from aframe_assets.store.opening import open_store
from aframe_assets.store.work import makes
from aframe_assets.store.workspace import Workspace
from aframe_assets.tags import resources
from aframe_ops.executor.executor import make_executor
from aframe_ops.executor.routing import BACKEND_TAG
from aframe_ops.site import load_site

NOTES = Path(os.environ["TOY"])
install(NOTES)


def note(file: str, **values) -> None:
    with (NOTES / f"{file}.jsonl").open("a") as f:
        f.write(json.dumps({"pid": os.getpid(), **values}) + "\n")


@dg.asset(op_tags={BACKEND_TAG: "play", **resources(cpus=3, memory_gb=8, time_min=5), **makes("segments")})
def table(context: dg.AssetExecutionContext) -> None:
    store = open_store(load_site().store_url)
    parts = Workspace(load_config(), store).wanted("segments").parts
    if store.complete(parts):
        note("quick", run=context.run_id)
        return
    note("made", run=context.run_id)
    deadline = time.time() + 60
    while not (NOTES / "go").exists() and time.time() < deadline:
        time.sleep(0.05)
    with store.scratch() as folder:
        (folder / "by").write_text(context.run_id)
        store.publish(parts, folder)


defs = dg.Definitions(assets=[table], executor=make_executor(load_site(), load_config()))
