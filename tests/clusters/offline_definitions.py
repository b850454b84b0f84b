"""Two assets: the first is made where the run is, the second in a job, and notes in ``$TOY`` where that read and wrote."""

import json
import os
import socket
import sys
from pathlib import Path

import dagster as dg

import aframe_ops
from aframe_assets.config_load import load_config
from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.io_managers import io_manager_for
from aframe_assets.tags import resources
from aframe_ops.executor.executor import make_executor
from aframe_ops.executor.routing import BACKEND_TAG
from aframe_ops.site import load_site

SITE = load_site()
SMALL = resources(memory_gb=0.6, time_min=10)


def reachable(address: str) -> bool:
    """Whether ``host:port`` takes connections from here."""
    host, _, port = address.rpartition(":")
    with socket.socket() as s:
        s.settimeout(5)
        return s.connect_ex((host, int(port))) == 0


@dg.asset(op_tags={**SMALL, BACKEND_TAG: "local"})
def given():
    store = open_store(SITE.store_url)
    with store.scratch() as scratch:
        (scratch / "given.txt").write_text("given " * 1000)
        return store.publish(KeyParts(asset="given", code_version="1"), scratch)


@dg.asset(op_tags=SMALL)
def made(given):
    store = open_store(SITE.store_url)
    path = store.open_local(given, "given.txt")
    with store.scratch() as scratch:
        (scratch / "made.txt").write_text(path.read_text().upper())
        note = {
            "python": sys.executable,
            "project": aframe_ops.__file__,
            "dagster": dg.__file__,
            "input": str(path),
            "scratch": str(scratch),
            "disk": os.environ.get("SLURM_TMPDIR") or os.environ["_CONDOR_SCRATCH_DIR"],
            "network": reachable(os.environ["TOY_LISTENER"]),
            "job": os.environ.get("SLURM_JOB_ID"),
        }
        (Path(os.environ["TOY"]) / "made.jsonl").open("a").write(json.dumps(note) + "\n")
        return store.publish(KeyParts(asset="made", code_version="1", inputs={"given": given.identity}), scratch)


defs = dg.Definitions(
    assets=[given, made],
    resources={"io_manager": io_manager_for(SITE.store_url)},
    executor=make_executor(SITE, load_config()),
)
