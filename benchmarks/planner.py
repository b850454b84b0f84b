"""Plan and status of large searches: ``python -m benchmarks.planner [--json] [--segments 10000 40000] [--folder DIR]``.

Writes a store with a manifest and files of the right sizes (holes, no bytes) for every segment of every asset of the graph, and times
the commands on it, each in a process of its own from start to end: `aframe status` before there is an index of the manifests and with
it, `aframe plan` of a finished search, and both after a change of a setting on which everything depends.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.table import cpu_seconds, peak_gb, show

CHANGED = {"AFRAME__STRAIN__SIMULATED__GLITCH_RATE": "31"}
"""A setting of `background`, on which all else depends."""

COMMANDS: dict[str, tuple[str, Mapping[str, str]]] = {
    "status, no index yet": ("status", {}),
    "status": ("status", {}),
    "plan": ("plan", {}),
    "status, all out of date": ("status", CHANGED),
    "plan, all out of date": ("plan", CHANGED),
}

# names and sizes of files, and how many numbers `meta` and the checks hold, as in a finished run of the preset demo
_FILES = {
    "background": {"background-{p}.hdf5": 31_469_016},
    "injections": {"rejected-parameters.hdf5": 31_056, "waveforms.hdf5": 42_007_520},
    "inference_results": {"0lag.hdf5": 8_016, "background.hdf5": 84_592, "foreground.hdf5": 63_984},
}
_META = {"background": 11, "injections": 6, "inference_results": 48}
_CHECKS = {"background": 2, "injections": 4, "inference_results": 2}
_DURATION = 900


def _sha256(*words: object) -> str:
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()


def rows_of(count: int) -> dict[str, dict[str, Any]]:
    """A segments table with `count` rows: three training chunks, a validation chunk, and test chunks."""
    roles = ["train"] * 3 + ["validation"] + ["test"] * (count - 4)
    starts = [1240600000 + 1000 * i for i in range(count)]
    return {
        f"{start}-{_DURATION}": {"gps_start": start, "gps_stop": start + _DURATION, "role": role, "fingerprint": ""}
        for start, role in zip(starts, roles, strict=True)
    }


def fill(workspace: Any, count: int) -> int:
    """Writes a finished search of `count` segments into an empty local store; the number of manifests."""
    from aframe_assets.lineage import ROLES
    from aframe_assets.store.handle import FileEntry, Handle, Manifest, content_sha256

    rows, written = rows_of(count), 0
    per_role = {role: {"key": _sha256("key", role), "sha256": _sha256("content", role)} for role in ROLES}
    for node in workspace.graph.values():
        checks = [
            {"name": f"check_{i}", "passed": True, "severity": "error", "description": "", "metadata": {"a": 0.5, "b": i}, "blocking": True}
            for i in range(_CHECKS.get(node.name, 2))
        ]
        for partition in rows if node.partitioned else [None]:
            parts = workspace.wanted(node.name, partition).parts
            sizes = _FILES.get(node.name, {"data.json": 10_000})
            files = [
                FileEntry(name=name.format(p=partition), sha256=_sha256(parts.key, name), nbytes=nbytes) for name, nbytes in sizes.items()
            ]
            sha256 = content_sha256(files)
            where = workspace.store.root / node.name / (partition or "_")
            folder = where / f"{parts.key[:16]}-{sha256[:8]}"
            folder.mkdir(parents=True)
            for file in files:
                (folder / file.name).touch()
                os.truncate(folder / file.name, file.nbytes)
            meta: dict[str, Any] = {f"number_{i}": i / 7 for i in range(_META.get(node.name, 5))} | {"roles": per_role}
            if node.partitioned:
                del meta["roles"]
            if node.name == "segments":
                meta |= {"rows": rows}
            handle = Handle(
                asset=node.name, partition=partition, key=parts.key, uri=folder.as_uri(), files=tuple(files), sha256=sha256, meta=meta
            )
            provenance = {
                "created": "2026-01-01T00:00:00+00:00",
                "host": "node",
                "run_id": _sha256("run")[:36],
                "wall_s": 1.5,
                "cpu_s": 1.2,
            }
            manifest = Manifest(handle=handle, parts=parts, status="ok", checks=checks, provenance=provenance)
            where.with_name(f"{where.name}.json").write_text(manifest.dumps())
            written += 1
    return written


def call(directory: Path, command: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """A command in a process of its own: wall and CPU seconds, most memory held (GB), and what it printed."""
    words = [sys.executable, "-m", "benchmarks.planner", "--here", command, str(directory)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AFRAME_")}
    start, cpu = time.monotonic(), cpu_seconds()
    done = subprocess.run(words, env={**clean, **variables}, capture_output=True, text=True)
    wall, cpu = time.monotonic() - start, cpu_seconds() - cpu
    if done.returncode:
        raise RuntimeError(f"aframe {command} ended with {done.returncode}: {done.stderr[-2000:]}")
    return {"seconds": wall, "cpu_seconds": cpu, "peak_gb": float(done.stderr.splitlines()[-1]), "output": done.stdout}


def _here(command: str, directory: str) -> None:
    """Runs ``aframe COMMAND`` in this process; the most memory held goes to stderr."""
    from aframe_ops.cli.main import app

    app([command, directory], standalone_mode=False)
    sys.stderr.write(f"{peak_gb()}\n")


def _expect(name: str, count: int, output: str) -> None:
    """Raises RuntimeError where a command did not see the search that was written."""
    done = {"status": f"{count}/{count}", "plan": "nothing to do"}[name.split(",")[0]]
    if (done in output) != ("out of date" not in name):
        raise RuntimeError(f"{name} of {count} segments does not show what there is: {output[:500]}")


def measure(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """The commands on a search of `count` segments, by name."""
    from aframe_ops.cli.initialise import initialise
    from aframe_ops.survey import no_collection

    directory = folder / f"run-{count}"
    run, _ = initialise(directory, "demo", overrides={}, store=None, profile="local", database=None)
    with no_collection():
        fill(run.workspace(), count)
    found = {}
    for name, (command, variables) in COMMANDS.items():
        found[name] = call(directory, command, variables)
        _expect(name, count, found[name].pop("output"))
    shutil.rmtree(directory)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__.split("\n\n")[1])
    parser.add_argument(
        "--json",
        action="store_true",
        help="one line of JSON: seconds of the slowest command by number of segments; ratio: growth, 1 is linear",
    )
    parser.add_argument("--segments", type=int, nargs="+", default=[10_000, 40_000], help="sizes of search (default 10000 40000)")
    parser.add_argument("--folder", type=Path, help="where the searches are written, 40 kB for a segment (default: in /tmp)")
    parser.add_argument("--here", nargs=2, metavar=("COMMAND", "DIR"), help="run a command in this process and say what it held")
    a = parser.parse_args(argv)
    if a.here:
        _here(*a.here)
        return
    if min(a.segments) < 5:
        parser.error(f"--segments {min(a.segments)}: expected at least 5")
    with tempfile.TemporaryDirectory(prefix="planner-", dir=a.folder) as folder:
        found = {count: measure(Path(folder), count) for count in a.segments}
    worst = {n: {key: max(c[key] for c in by.values()) for key in ("seconds", "cpu_seconds", "peak_gb")} for n, by in found.items()}
    few, many = min(worst), max(worst)
    result = {
        "seconds": {str(n): w["seconds"] for n, w in worst.items()},
        "cpu_seconds": {str(n): w["cpu_seconds"] for n, w in worst.items()},
        "peak_gb": {str(n): w["peak_gb"] for n, w in worst.items()},
        "ratio": worst[many]["cpu_seconds"] / many / (worst[few]["cpu_seconds"] / few),
        "commands": {str(n): by for n, by in found.items()},
    }
    show(
        "`aframe status` and `aframe plan`, whole processes",
        ["", "segments", "s", "CPU s", "GB at most"],
        [[name, n, c["seconds"], c["cpu_seconds"], c["peak_gb"]] for n, by in found.items() for name, c in by.items()],
        result,
        a.json,
        (f"CPU seconds per segment with {many} segments over those with {few}: {result['ratio']:.2f}",) if many != few else (),
    )


if __name__ == "__main__":
    main()
