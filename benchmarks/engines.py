"""``python -m benchmarks.engines [--json]``: windows per second and largest difference of each engine that this machine has.

A network with random weights is exported as the graph does it and built for every platform and precision at hand. Engines take turns
in rounds, so that a busy moment hits all of them. On a CPU its seconds are counted, not wall time. The ratio is the cost of the engine
that ``auto`` took over that of torch without compilation, in the same run: the lower, the better. ``auto`` measures for itself, once and by
the clock, so it may take another engine than the one that is fastest here; a line below the table says so where they are further apart than
the rounds.

Logits of random weights lie closer together than those of trained ones, so differences are given as parts of their spread.

A block of frames or maps stands for as many windows as it has steps at 4 Hz; the head, which joins and pools them, is not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aframe_assets.engine.build import build_engine
from aframe_assets.engine.engine import Engine, load_engine, network_engine
from aframe_assets.engine.export import export
from aframe_assets.engine.parity import probes
from aframe_assets.engine.platforms import best_device, device_class
from aframe_assets.engine.signature import Signature
from aframe_assets.engine.support import SUPPORT
from aframe_assets.model.bundle import load_bundle, save_bundle
from aframe_assets.model.networks import Sky, build_network
from benchmarks.slide_networks import METHODS, Size, experiment
from benchmarks.table import cpu_seconds, show

RATE = 4.0
EAGER = "torch, not exported"


def exported_network(method: str, size: Size, folder: Path) -> None:
    """Bundle and exported files of a random network in `folder`."""
    config = experiment(method, size, {})
    torch.manual_seed(0)
    network = build_network(config.model.architecture, Sky.of(config)).eval()
    save_bundle(folder, network, config, metrics={}, provenance={})
    bundle = load_bundle(folder)
    export(bundle.network, Signature.of_bundle(bundle, size.block), folder)


def engines(
    folder: Path, precisions: list[str], platforms: list[str], scratch: Path
) -> tuple[dict[str, Engine], dict[str, Any], dict[str, str], dict[str, str | None]]:
    """Engines by name, what was found when each was built, why others are not there, and which one `auto` took for each precision."""
    bundle, device = load_bundle(folder), best_device()
    block = Signature.read(folder / "signature.json").block / bundle.sample_rate or 8.0
    eager = network_engine(bundle, device, block=block)
    made: dict[str, Engine] = {EAGER: eager}
    found: dict[str, Any] = {
        EAGER: {
            "max_difference": 0.0,
            "logit_std": 1.0,
            "rank_correlation": 1.0,
            "passed": True,
            "batch": 32 if eager.form == "windows" else 1,
        }
    }
    absent: dict[str, str] = {}
    taken: dict[str, str | None] = {}
    for precision in precisions:
        # what auto takes is measured whether it was asked for or not
        names, taken[precision] = list(platforms), None
        for choice in ["auto", *platforms]:
            if choice not in ("auto", *names):
                continue
            place = scratch / f"{choice}-{precision}"
            place.mkdir()
            try:
                record = build_engine(folder, place, choice, precision=precision, device=device)
            except ValueError as e:
                absent[f"{choice} {precision}"] = str(e).removeprefix(f"engine.platform {choice}: ")
                continue
            name = f"{record['platform']} {precision}"
            made[name] = load_engine(place)
            found[name] = record["parity"] | {"batch": record["batch"]}
            if choice == "auto":
                taken[precision] = name if record["parity"]["passed"] else None
                names = [n for n in names if n != record["platform"]]
    for name, engine in made.items():
        engine.batch = found[name]["batch"]
    return made, found, absent, taken


def seconds_per_input(made: dict[str, Engine], inputs: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each engine for a window or block in every round; of the CPU, or of the clock where a GPU works."""
    clock: Callable[[], float] = cpu_seconds if best_device() == "cpu" else time.perf_counter
    first = next(iter(made.values()))
    x = probes(len(first.ifos), first.signature.samples, first.sample_rate, inputs, seed=1)
    spent: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, engine in made.items():
            start = clock()
            engine.infer(x)
            # the first is a warm-up
            if turn:
                spent[name].append((clock() - start) / inputs)
    return spent


def faster(taken: str, rivals: Iterable[str], spent: Mapping[str, list[float]]) -> str | None:
    """The cheapest of `rivals` by the median, if `taken` costs more by more than the spread (half of a round's range) of either."""
    best = min(rivals, key=lambda n: np.median(spent[n]))
    spread = max(np.ptp(spent[n]) / 2 for n in (taken, best))
    return best if np.median(spent[taken]) - np.median(spent[best]) > spread else None


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--method", default="windowed", choices=[m for m in METHODS if m != "cascade"], help="the network")
    parser.add_argument("--width", type=int, default=64, help="of the network's first stage")
    parser.add_argument("--layers", default="3,4,6,3", help="basic blocks of each stage")
    parser.add_argument("--precision", default="fp32", help="some of fp32,tf32,fp16,bf16")
    parser.add_argument("--platform", default=",".join(SUPPORT), help=f"some of {','.join(SUPPORT)}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    options = parser.parse_args(arguments)
    size = Size(layers=tuple(map(int, options.layers.split(","))), width=options.width, block=8.0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "exported")
        folder.mkdir()
        exported_network(options.method, size, folder)
        made, found, absent, taken = engines(folder, options.precision.split(","), options.platform.split(","), Path(scratch))
        inputs = 64 if next(iter(made.values())).form == "windows" else 4
        rounds = seconds_per_input(made, inputs, options.rounds)
        signature = next(iter(made.values())).signature
    windows = 1.0 if signature.form == "windows" else size.block * RATE
    spent = {name: float(np.median(seconds)) for name, seconds in rounds.items()}
    beaten = {
        p: faster(name, [n for n in made if n.endswith(f" {p}") and found[n]["passed"]], rounds)
        for p, name in taken.items()
        if name is not None
    }
    rows, table = [], {}
    for name in sorted(made, key=spent.__getitem__):
        mark = "auto" if name in taken.values() else "" if found[name]["passed"] else "not in parity"
        per_second, ratio = windows / spent[name], spent[EAGER] / spent[name]
        difference = found[name]["max_difference"] / found[name]["logit_std"]
        rows.append([name, per_second, ratio, difference, found[name]["rank_correlation"], found[name]["batch"], mark])
        table[name] = {"windows_per_second": per_second, "speed": ratio, "auto": mark == "auto"} | {
            k: found[name][k] for k in ("max_difference", "logit_std", "rank_correlation", "batch", "passed")
        }
    best = taken[options.precision.split(",")[0]] or EAGER
    device = device_class(best_device())
    result = {
        "ratio": spent[best] / spent[EAGER],
        "auto": taken,
        "faster_than_auto": beaten,
        "engines": table,
        "absent": absent,
        "device": device,
        "form": signature.form,
    }
    columns = ["engine", "windows/s", "of torch", "max |difference|/spread", "rank correlation", "batch", ""]
    clock = "CPU seconds" if best_device() == "cpu" else "wall time"
    notes = [f"{device}; {clock}, {next(iter(made.values())).threads} threads; 'auto' took the marked one of each precision"]
    notes += [
        f"{taken[p]} was taken by auto; {name} was faster here by more than the spread of the rounds" for p, name in beaten.items() if name
    ]
    notes += [f"not here: {name}: {why}" for name, why in absent.items()]
    show(
        f"Engines: {options.method}, width {size.width}, layers {options.layers}, {signature.form}",
        columns,
        rows,
        result,
        options.json,
        notes,
    )


if __name__ == "__main__":
    main()
