"""One command from segments to the report, and the same command again."""

from __future__ import annotations

import json
import shutil
import time

import boto3
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture
def copied_run(tiny_run, new_run):
    """The finished run at another place: artifacts are found by content, not by absolute path."""
    run = new_run("copy")
    shutil.copytree(tiny_run.path, run.path)
    return run


def test_everything_is_made_and_reported(tiny_run):
    out = tiny_run.finished.stdout
    contents = tiny_run.contents()
    assert all(contents.values()), contents
    for pair in ("35", "20", "10"):
        assert pair in out
    assert "report.html" in out


def test_the_same_command_again_redoes_nothing(tiny_run):
    before = tiny_run.made_at()
    start = time.monotonic()
    again = tiny_run.run()
    print(f"second run: {time.monotonic() - start:.1f} s")
    assert tiny_run.made_at() == before
    assert "nothing to do" in (again.stdout + again.stderr).lower()


def test_a_changed_clustering_window_redoes_only_inference_and_what_follows(copied_run, tiny):
    before = copied_run.made_at()
    copied_run.write({**tiny, "inference": {**tiny["inference"], "cluster_window_length": 6}})
    copied_run.run()
    after = copied_run.made_at()
    redone = {k.split("/")[0] for k in after if after[k] != before[k]}
    assert redone == {"inference_results", "events", "sensitive_volume", "candidates", "report"}


def test_status_and_plan_say_what_a_change_touches(copied_run, tiny):
    copied_run.write({**tiny, "sensitivity": {"target_sigma": 0.12}})
    status = json.loads(copied_run.aframe("status", str(copied_run.path), "--json").stdout)
    states = {a["asset"]: a for a in status["assets"]}
    assert states["events"]["complete"] == states["events"]["expected"] == 1
    assert states["sensitive_volume"]["complete"] == 0
    why = copied_run.aframe("status", str(copied_run.path), "--why").stdout
    assert "target_sigma" in why


def test_the_whole_graph_on_s3_gives_equal_results(tiny_run, new_run, tiny):
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "not-so-secret-value",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = boto3.client(
            "s3", endpoint_url=env["AWS_ENDPOINT_URL"], aws_access_key_id="test", aws_secret_access_key="x", region_name="us-east-1"
        )
        client.create_bucket(Bucket="search")
        run = new_run("on s3", env).init("--store", "s3://search/runs/tiny")
        run.run()
        objects = client.get_paginator("list_objects_v2").paginate(Bucket="search")
        names = [o["Key"] for page in objects for o in page["Contents"]]
        assert all(n.startswith("runs/tiny/") for n in names)
        manifests = {n: json.loads(client.get_object(Bucket="search", Key=n)["Body"].read()) for n in names if n.endswith("/_.json")}
        local = tiny_run.workspace()
        for asset in ("segments", "psd", "training_waveforms", "validation_waveforms", "model", "events", "sensitive_volume"):
            ours = local.store.manifest(asset).handle
            theirs = manifests[f"runs/tiny/{asset}/_.json"]["handle"]
            if asset in ("segments", "psd", "training_waveforms", "validation_waveforms", "events"):
                assert theirs["sha256"] == ours.sha256, asset
        for path in run.path.rglob("*"):
            if path.is_file() and path.stat().st_size < 5_000_000:
                assert b"not-so-secret-value" not in path.read_bytes(), path
    finally:
        server.stop()
