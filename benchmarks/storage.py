"""What the store costs on S3: publishing and opening a large file beside boto3's own transfer of it, and looking at many artifacts.

    python -m benchmarks.storage s3://bucket/prefix            # any server, by the usual variables
    python -m benchmarks.storage                               # a Ceph of its own on this machine (see `benchmarks.ceph`)

Both transfers use the same file, server, disk and client settings, one after the other in turn; of all rounds the median counts.
Ours also flushes and hashes the file, and writes a manifest; on the way back it checks the sha256.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from aframe_assets.store import KeyParts, open_store
from aframe_assets.store.handle import content_sha256
from aframe_assets.store.s3 import S3Store
from benchmarks import ceph

DIRECTIONS = ("up", "down")
WANTED = 0.8


def parts(number: int) -> KeyParts:
    return KeyParts(asset="benchmark", code_version="1", partition=f"{number}-1")


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def transfers(url: str, folder: Path, nbytes: int, rounds: int) -> dict[str, Any]:
    """MB/s and CPU seconds per GB, ours and boto3's, up and down, and the ratio of the medians."""
    store = open_store(url, cache_dir=folder / "cache", cache_bytes=10 * nbytes)
    assert isinstance(store, S3Store)
    key = store._key("benchmark-plain")
    found: dict[tuple[str, str], list[dict[str, float]]] = {(d, who): [] for d in DIRECTIONS for who in ("ours", "boto3")}
    store.check()
    for number in range(rounds + 1):  # the first makes connections and pools
        file = folder / "file"
        block = os.urandom(1 << 20)
        with file.open("wb") as stream:
            for i in range(nbytes >> 20):
                stream.write(i.to_bytes(8, "little") + block[8:])
        works = _works(store, key, number, folder)
        order = list(works) if number % 2 else [("up", "ours"), ("up", "boto3"), ("down", "ours"), ("down", "boto3")]
        for what in order:
            os.sync()
            seconds = timed(works[what])
            if number:
                found[what].append(seconds)
        (folder / "plain").unlink()
        shutil.rmtree(folder / "cache", ignore_errors=True)
        store._remove("benchmark"), store._remove(f"benchmark/{number}-1.json")
    store.client.delete_object(Bucket=store.bucket, Key=key)
    out: dict[str, Any] = {"mb": nbytes / 1e6, "rounds": rounds}
    for direction in DIRECTIONS:
        wall = {who: statistics.median(s["wall_s"] for s in found[direction, who]) for who in ("ours", "boto3")}
        cpu = {who: statistics.median(s["cpu_s"] for s in found[direction, who]) for who in ("ours", "boto3")}
        out[direction] = {
            "mb_per_s": {who: nbytes / 1e6 / s for who, s in wall.items()},
            "cpu_s_per_gb": {who: s / (nbytes / 1e9) for who, s in cpu.items()},
            "ratio": wall["boto3"] / wall["ours"],
            "ratios": [b["wall_s"] / a["wall_s"] for a, b in zip(found[direction, "ours"], found[direction, "boto3"], strict=True)],
        }
    return out


def _works(store: S3Store, key: str, number: int, folder: Path) -> dict[tuple[str, str], Callable[[], object]]:
    file, handles = folder / "file", []
    return {
        ("up", "boto3"): lambda: store.client.upload_file(str(file), store.bucket, key),
        ("up", "ours"): lambda: handles.append(store.publish(parts(number), {"x": file})),
        ("down", "boto3"): lambda: store.client.download_file(store.bucket, key, str(folder / "plain")),
        ("down", "ours"): lambda: store.open_local(handles[0], "x"),
    }


def listing(url: str, folder: Path, artifacts: int) -> dict[str, Any]:
    """Seconds to look at `artifacts` artifacts of one empty file each: two objects an artifact."""
    store = open_store(url, cache_dir=folder / "cache")
    assert isinstance(store, S3Store)
    one = store.publish(parts(0), {"x": _empty(folder)})
    manifest = store.manifest("benchmark", "0-1")
    body = {}
    for number in range(artifacts):
        p = parts(number)
        version = f"{p.key[:16]}-{content_sha256(one.files)[:8]}"
        handle = one.model_copy(update={"partition": p.partition, "key": p.key, "uri": store.uri(f"benchmark/{p.partition}/{version}")})
        body[f"benchmark/{p.partition}.json"] = manifest.model_copy(update={"handle": handle, "parts": p}).dumps().encode()
        body[f"benchmark/{p.partition}/{version}/x"] = b""
    made = timed(lambda: _put_all(store, body))
    wanted = [parts(number) for number in range(artifacts)]
    out = {"objects": len(body), "made": made, "list": timed(lambda: store._stats("benchmark"))}
    out["first look"] = timed(lambda: store.complete_many(wanted))
    found: list[int] = []
    out["second look"] = timed(lambda: found.append(len(store.complete_many(wanted))))
    assert found == [artifacts], found
    return out


def _empty(folder: Path) -> Path:
    (folder / "empty").write_bytes(b"")
    return folder / "empty"


def _put_all(store: S3Store, body: dict[str, bytes]) -> None:
    """Many small objects, by addresses that are signed once: the client's own work would take most of the time."""
    names, workers, stopped = sorted(body), 8, threading.Event()

    def put(mine: list[str]) -> None:
        connection = None
        for name in mine:
            if stopped.is_set():
                return
            url = urlsplit(store.client.generate_presigned_url("put_object", Params={"Bucket": store.bucket, "Key": store._key(name)}))
            connection = connection or http.client.HTTPConnection(url.hostname, url.port, timeout=60)
            connection.request("PUT", quote(url.path, safe="/%") + "?" + url.query, body[name])
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"{name}: the server answered {answer.status}")

    with ThreadPoolExecutor(workers) as pool:
        try:
            list(pool.map(put, [names[i::workers] for i in range(workers)]))
        finally:
            stopped.set()  # Ctrl-C would wait for all of them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="s3://bucket/prefix; default: a Ceph started for this")
    parser.add_argument("--mb", type=int, default=512, help="size of the file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--artifacts", type=int, default=50_000, help="artifacts to list, two objects each; 0: none")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.url is None:
        with ceph.running() as server:
            os.environ.update(server.variables)
            url = "s3://aframe-benchmark/run"
            open_store(url, cache_dir="/nonexistent").client.create_bucket(Bucket="aframe-benchmark")
            found = measure(url, options)
    else:
        found = measure(options.url, options)
    if options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        show(found)


def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="aframe-storage-") as folder:
        found: dict[str, Any] = {}
        if options.rounds:
            found["transfer"] = transfers(url, Path(folder), options.mb << 20, options.rounds)
        if options.artifacts:
            found["listing"] = listing(f"{url}/listing", Path(folder), options.artifacts)
        return found


def show(found: dict[str, Any]) -> None:
    for direction in DIRECTIONS if "transfer" in found else ():
        t = found["transfer"][direction]
        rate, cpu = t["mb_per_s"], t["cpu_s_per_gb"]
        sys.stdout.write(
            f"{direction:5s} ours {rate['ours']:.0f} MB/s ({cpu['ours']:.1f} CPU s/GB)   boto3 {rate['boto3']:.0f} MB/s "
            f"({cpu['boto3']:.1f} CPU s/GB)   ratio {t['ratio']:.2f}{'' if t['ratio'] >= WANTED else f', below {WANTED}'}\n"
        )
    if "listing" in found:
        each = ", ".join(f"{name} {s['wall_s']:.1f} s" for name, s in found["listing"].items() if name != "objects")
        sys.stdout.write(f"{found['listing']['objects']} objects: {each}\n")


if __name__ == "__main__":
    main()
