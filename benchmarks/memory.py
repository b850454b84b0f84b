"""Memory of a search: ``python -m benchmarks.memory [--json] [--method direct] [--slides 1000] [--seconds 4096]``.

The background of a stretch of whitened strain is searched in a process of its own, and the most memory that this process ever held
(VmHWM: resident, with the interpreter and its libraries) is put beside ``inference.memory_gb``, the bound of the settings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from benchmarks.slide_networks import METHODS, Size
from benchmarks.table import cpu_seconds, peak_gb, show
from benchmarks.timeslides import Method


def search(method: str, size: Size, slides: int, seconds: float, memory_gb: float | None) -> dict[str, float]:
    """Search in this process; the memory held before and at most, GB, the livetime and CPU seconds."""
    one = Method(method, size, seconds, shift=1.0, ring=False, memory_gb=memory_gb)
    before, start = peak_gb(), cpu_seconds()
    run = one.run(slides)
    return {
        "before_gb": before,
        "peak_gb": peak_gb(),
        "bound_gb": one.config.inference.memory_gb,
        "livetime": run.livetime,
        "seconds": cpu_seconds() - start,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n\n")[1])
    parser.add_argument("--json", action="store_true", help="one line of JSON: ratio is the most memory held over the bound")
    parser.add_argument("--method", choices=METHODS[1:], default="direct", help="way of searching (default direct)")
    parser.add_argument("--slides", type=int, default=1000, help="slides, 1 s apart (default 1000)")
    parser.add_argument("--seconds", type=float, default=4096, help="whitened strain of each detector (default 4096)")
    parser.add_argument("--memory-gb", type=float, help="another bound than the setting's default")
    parser.add_argument("--width", type=int, default=64, help="of the networks (default 64, upstream's)")
    parser.add_argument("--layers", default="3,4,6,3", help="of the networks (default 3,4,6,3, upstream's)")
    parser.add_argument("--here", action="store_true", help="search in this process and print what it held")
    a = parser.parse_args(argv)
    if not 1 <= a.slides < a.seconds:
        parser.error(f"--slides {a.slides}: expected 1 to {a.seconds - 1:g}: they are 1 s apart in {a.seconds:g} s of strain")
    if a.here:
        size = Size(tuple(int(n) for n in a.layers.split(",")), a.width)
        sys.stdout.write(json.dumps(search(a.method, size, a.slides, a.seconds, a.memory_gb)) + "\n")
        return
    given = sys.argv[1:] if argv is None else argv
    out = subprocess.run([sys.executable, "-m", "benchmarks.memory", *given, "--here"], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(out.stdout.splitlines()[-1])
    result = {"ratio": found["peak_gb"] / found["bound_gb"], "method": a.method, "slides": a.slides, **found}
    show(
        f"Memory of {a.slides:,} slides of {a.seconds:g} s of H1 and L1 at 2048 Hz, layers {a.layers}, width {a.width}, {a.method}",
        ["", "GB"],
        [
            ["before the search, with libraries and strain", found["before_gb"]],
            ["at most", found["peak_gb"]],
            ["bound, inference.memory_gb", found["bound_gb"]],
        ],
        result,
        a.json,
        (f"{found['livetime'] / 86400:.2f} days of slides in {found['seconds']:.0f} CPU s.",),
    )


if __name__ == "__main__":
    main()
