"""A hundred publishes killed at random moments: every manifest has its bytes, nothing partial is listed, all else can go or be replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from aframe_assets.store import base as base_module
from aframe_assets.store import open_store, s3
from aframe_assets.store.leftovers import find_leftovers

HERE = Path(__file__).parent
ROUNDS = 100
PART_BYTES = 5 << 20
PUBLISHED_AGAIN = 10
"""Of twenty partitions; the others are pruned."""


def killed_publishes(store, cache: Path, rounds: int) -> dict[str, float]:
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, HERE / "killed_publisher.py", store.url, cache, str(rounds), "7", str(PART_BYTES)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def lying_below(store, folder: str) -> set[str]:
    """Paths of all that takes space, hidden and unfinished things too; an empty folder, where the next version goes, takes none."""
    return {x.path for x in store._everything(print) if x.path.startswith(f"{folder}/") and not x.path.endswith("/")}


@pytest.mark.timeout(1800)
def test_no_manifest_without_its_bytes_after_a_hundred_kills(store, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", PART_BYTES)
    count = killed_publishes(store, tmp_path / "cache", ROUNDS)
    print(f"{store}: {count}")
    assert count["killed"] >= ROUNDS
    # a reader that comes afterwards, without what the writers knew
    again = open_store(store.url, cache_dir=tmp_path / "reader")
    raw = {e.name for e in again._list("background")} - {"_index.json"}
    assert all(name.endswith(".json") for name in raw), "no unfinished file is listed"
    found = again.manifests("background")
    assert {f"{p}.json" for p in found} == raw and len(found) > 10, "every manifest can be read"
    for partition, manifest in found.items():
        assert manifest.status == "ok" and again.verify(manifest.handle) == [], partition
        assert again.complete(manifest.parts) == manifest.handle
    good, bad = again.survey("background", list(found))
    assert set(good) == set(found) and bad == {}
    # whatever was cut off does not stand in the way of the next publish, which takes it along in the end
    with monkeypatch.context() as old_at_once:
        old_at_once.setattr(base_module, "ORPHAN_S", -60.0)
        old_at_once.setattr(s3, "_ABANDONED_S", -s3._ABANDONED_S)
        for number in range(PUBLISHED_AGAIN):
            with store.scratch() as folder:
                (folder / "x").write_text(str(number))
                parts = next(iter(found.values())).parts.model_copy(update={"partition": f"{number}-1", "config": {"v": "last"}})
                handle = store.publish(parts, folder)
            assert store.complete(parts) == handle
            assert lying_below(store, f"background/{number}-1") == {f"background/{number}-1/{handle.uri.rsplit('/', 1)[1]}/x"}
    # and where nothing is published any more, `aframe prune` takes it
    leftovers = find_leftovers(again, 0)
    print(f"{store}: {dict(Counter(x.why for x in leftovers))}")
    assert leftovers, "a hundred kills leave something"
    for one in leftovers:
        one.remove()
    assert find_leftovers(again, 0) == [] == find_leftovers(store, 0)
    left = again.manifests("background")
    for partition, manifest in left.items():
        assert again.verify(manifest.handle) == [], partition
        if int(partition.split("-")[0]) >= PUBLISHED_AGAIN:
            assert manifest == found[partition], "what was whole stays"
    named = {f"{again._folder(m.handle)}/{f.name}" for m in left.values() for f in m.handle.files}
    records = {f"background/{p}.json" for p in left} | {"background/_index.json"}
    assert set(left) >= set(found) and lying_below(again, "background") - {"background/.lock"} == named | records
    if hasattr(store, "root"):
        assert not list((store.root / ".local" / "scratch").iterdir())
    else:
        assert "Uploads" not in store.client.list_multipart_uploads(Bucket=store.bucket)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_while_an_artifact_is_replaced_leaves_the_old_or_the_new(store, tmp_path):
    """As above, five times as often."""
    count = killed_publishes(store, tmp_path / "cache", 5 * ROUNDS)
    assert count["killed"] >= 5 * ROUNDS
    for partition, manifest in open_store(store.url, cache_dir=tmp_path / "reader").manifests("background").items():
        assert store.verify(manifest.handle) == [], partition
