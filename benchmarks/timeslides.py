"""Cost of slides: ``python -m benchmarks.timeslides [--json] [--seconds 64] [--slides 1,10,100,1000]``.

One stretch of whitened strain of H1 and L1, slid in a ring, searched in four ways on one thread: by upstream's network run anew for
every window in a plain loop, as a user of Aframe does today, and by this project's search with the streaming joint network, the
cascade and the factorised network (reference fast-timeslides). CPU seconds, the least of several rounds in which all take turns;
for a second of livetime, since context costs the new networks some outputs at a stretch's ends. Weights are random.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch

from aframe_assets.inference import slides as search
from aframe_assets.inference.cascade import Thresholds, TriggerChooser, unfiltered
from aframe_assets.inference.windows import needed
from aframe_assets.segments.geometry import SlideGeometry, shift_vectors
from aframe_assets.segments.vetoes import runs
from benchmarks import slide_networks as nets
from benchmarks.slide_networks import METHODS, Size
from benchmarks.table import cpu_seconds, show

SHIFT = 1 / 16
"""Seconds from slide to slide: a thousand fit into a ring of 64 s. What a slide costs hardly depends on it."""

MEASURED = {"windowed": 1, "streaming": 10, "cascade": 100, "direct": 10**9}
"""Slides that are run at most; the time of more is multiplied up."""

BARS = {"streaming": {1: 5, 10: 5, 100: 5, 1000: 5}, "cascade": {100: 15}, "direct": {100: 100, 1000: 600}}
"""How many times less than the loop over windows each may cost, by number of slides."""

CALIBRATED = {"filter": 6000.0, "joint": 1500.0}
"""Seconds of slides on whose scores the thresholds of a cascade are found."""


@dataclass(frozen=True)
class Run:
    """What a search of some slides took.

    Attributes:
        seconds: CPU seconds.
        clustering: those of integration and clustering.
        livetime: seconds of outputs that count, in all slides.
        events: found.
        kept: share of the outputs that a cascade's second network scored.
    """

    seconds: float
    clustering: float
    livetime: float
    events: int
    kept: float = 1.0


@contextmanager
def clustering_clock() -> Iterator[list[float]]:
    """Collects the CPU seconds that the search spends on events, integration and clustering, while it is open."""
    spent: list[float] = []
    events = search.Pass.events

    def timed(*args: Any) -> Any:
        start = cpu_seconds()
        out = events(*args)
        spent.append(cpu_seconds() - start)
        return out

    with mock.patch.object(search.Pass, "events", timed):
        yield spent


class Method:
    """One way of searching, ready to run.

    Args:
        name: one of METHODS.
        size: of the networks.
        seconds: whitened strain of each detector.
        batch: windows of a call of the loop.
        shift: seconds by which L1 is shifted from slide to slide.
        ring: slide in a ring, so that every slide has all of the strain.
        memory_gb: another bound than the default of ``inference.memory_gb``.
    """

    def __init__(
        self,
        name: str,
        size: Size,
        seconds: float,
        *,
        batch: int = 32,
        shift: float = SHIFT,
        ring: bool = True,
        memory_gb: float | None = None,
    ) -> None:
        self.name, self.batch = name, batch
        bound = {} if memory_gb is None else {"memory_gb": memory_gb}
        self.config = nets.experiment(name, size, {"shifts": [0, shift], "slide_mode": "ring" if ring else "linear", **bound})
        self.bundle = nets.random_bundle(self.config, self.config.model.architecture)
        self.engine = nets.engine_of(self.config, self.bundle, size)
        self.chunk = nets.white_chunk(self.config, seconds)
        c = self.config.conditioning
        self.geometry = SlideGeometry.of(self.config, 0.0, seconds + c.psd_length + c.fduration)
        self.chooser = self._chooser() if self.engine.filter is not None else None

    def run(self, num_slides: int) -> Run:
        """The background of slides 1 to `num_slides`."""
        shifts = shift_vectors(num_slides, self.config.inference.shifts)
        return self._loop(shifts) if self.name == "windowed" else self._search(shifts)

    def loop_scores(self, shift: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Scores of a slide's windows that some valid output looks back on, 0 for the others; and which outputs are valid."""
        fs, geometry = self.chunk.sample_rate, self.geometry
        valid = geometry.valid(shift)
        wanted = np.flatnonzero(needed(valid, geometry.boxcar))
        offsets = np.array([round(s * fs) for s in shift])[:, None]
        starts = (wanted * round(fs / geometry.inference_rate) + offsets) % len(self.chunk.streams[0])
        out = np.zeros(len(valid), np.float32)
        out[wanted] = nets.upstream_scores(self.bundle.network, self.chunk.streams, starts, self.bundle.kernel_size, self.batch)
        return out, valid

    def _loop(self, shifts: Sequence[Sequence[float]]) -> Run:
        inference, start = self.config.inference, cpu_seconds()
        clustering, live, events = 0.0, 0.0, 0
        for shift in shifts:
            scores, valid = self.loop_scores(shift)
            before = cpu_seconds()
            args = inference.inference_rate, inference.integration_window_length, inference.cluster_window_length
            events += len(nets.upstream_events(scores, *args)[0])
            clustering += cpu_seconds() - before
            live += float(valid.sum()) / inference.inference_rate
        return Run(cpu_seconds() - start, clustering, live, events)

    def _search(self, shifts: Sequence[tuple[float, ...]]) -> Run:
        inference = self.config.inference
        start = cpu_seconds()
        with clustering_clock() as spent:
            found = search.run_slides(self.chunk, self.geometry, self.engine, inference, shifts, chooser=self.chooser)
        seconds = cpu_seconds() - start
        asked = sum(int(needed(self.geometry.valid(s), self.geometry.boxcar).sum()) for s in shifts)
        return Run(seconds, sum(spent), found.background.Tb, len(found.background), found.windows["background"] / asked)

    def _chooser(self) -> TriggerChooser:
        """What the filter keeps: the share that the settings allow, of the first slides."""
        inference = self.config.inference

        def stretches(engine: Any, seconds: float) -> list[np.ndarray]:
            one = self.geometry.livetime(shift_vectors(1, inference.shifts)[0])
            shifts = shift_vectors(math.ceil(seconds / one), inference.shifts)
            scores, _ = search.Pass(self.chunk, self.geometry, engine, inference).scores(self.geometry, shifts, "background")
            return [row[a:b] for row in scores for a, b in runs(np.isfinite(row))]

        filtered, joint = stretches(self.engine.filter, CALIBRATED["filter"]), stretches(unfiltered(self.engine), CALIBRATED["joint"])
        return TriggerChooser.of(Thresholds.of(filtered, joint, inference), inference)


@dataclass(frozen=True)
class Cost:
    """The runs of one method and number of slides.

    Attributes:
        runs: one of each round.
        times: slides wanted for each slide that was run; 1 where all were.
    """

    runs: list[Run]
    times: float

    @property
    def seconds(self) -> float:
        """Least CPU seconds, of all slides."""
        return min(r.seconds for r in self.runs) * self.times

    @property
    def per_livetime(self) -> float:
        """CPU seconds for a second of livetime."""
        return self.seconds / (self.runs[0].livetime * self.times)

    @property
    def clustering(self) -> float:
        """Share of integration and clustering in the total."""
        return min(r.clustering for r in self.runs) * self.times / self.seconds

    @property
    def spread(self) -> float:
        """How much more the dearest round took than the cheapest."""
        return max(r.seconds for r in self.runs) * self.times / self.seconds - 1


def measure(methods: Sequence[Method], slides: Sequence[int], rounds: int) -> dict[str, dict[int, Cost]]:
    """Costs by method and number of slides; in each round every method runs once with each number of slides that is not multiplied up."""
    runs: dict[tuple[str, int], list[Run]] = {}
    for method in methods:
        method.run(1)  # libraries choose their kernels at the first call
    for _ in range(rounds):
        for method in methods:
            for n in sorted({min(n, MEASURED[method.name]) for n in slides}):
                runs.setdefault((method.name, n), []).append(method.run(n))
    out: dict[str, dict[int, Cost]] = {}
    for method in methods:
        ran = {n: min(n, MEASURED[method.name]) for n in slides}
        out[method.name] = {n: Cost(runs[method.name, m], n / m) for n, m in ran.items()}
    return out


def operations(methods: Sequence[Method], slides: Sequence[int], kept: float) -> dict[str, dict[int, float]]:
    """Floating-point operations for a second of strain and `slides` slides of it, by method; `kept` is the cascade's share."""
    each = {m.name: nets.arithmetic(m.bundle, m.config.inference.inference_rate) for m in methods}
    direct, joint = each["direct"], each["streaming"]["slide"]
    each["cascade"] = {"once": direct["once"], "slide": direct["slide"] + kept * joint}
    return {name: {n: a["once"] + n * a["slide"] for n in slides} for name, a in each.items()}


def result_of(costs: dict[str, dict[int, Cost]]) -> dict[str, Any]:
    """What ``--json`` prints: CPU seconds for a second of livetime of the loop over those of each method, by number of slides."""
    windowed = costs["windowed"]

    def ratios(name: str) -> dict[str, float]:
        return {str(n): windowed[n].per_livetime / cost.per_livetime for n, cost in costs[name].items()}

    return {
        "ratio": ratios("direct"),
        "streaming": ratios("streaming"),
        "cascade": ratios("cascade"),
        "clustering_share": {str(n): cost.clustering for n, cost in costs["direct"].items()},
        "seconds": {name: {str(n): cost.seconds for n, cost in table.items()} for name, table in costs.items()},
        "multiplied_up": {name: [n for n, cost in table.items() if cost.times > 1] for name, table in costs.items()},
        "spread": max(cost.spread for table in costs.values() for cost in table.values()),
        "cascade_kept": costs["cascade"][max(costs["cascade"])].runs[0].kept,
    }


def rows_of(costs: dict[str, dict[int, Cost]], result: dict[str, Any]) -> list[list[Any]]:
    """Rows of the table."""
    rows = []
    for name, table in costs.items():
        ratio = result["ratio"] if name == "direct" else result.get(name, {})
        for n, cost in table.items():
            bar = BARS.get(name, {}).get(n)
            shown = f"{cost.clustering:.2%}", f"{cost.spread:.0%}", ratio.get(str(n), 1.0), f">= {bar}" if bar else ""
            rows.append([name, f"{n}{' x' if cost.times > 1 else ''}", cost.seconds, 1 / cost.per_livetime, *shown])
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeslides", description=__doc__.split("\n\n")[1])
    parser.add_argument("--json", action="store_true", help="one line of JSON: how many times less than the loop over windows")
    parser.add_argument("--seconds", type=float, default=64, help="whitened strain of each detector (default 64)")
    parser.add_argument("--slides", default="1,10,100,1000", help="numbers of slides (default 1,10,100,1000)")
    parser.add_argument("--rounds", type=int, default=3, help="the least of so many is taken (default 3)")
    parser.add_argument("--batch", type=int, default=32, help="windows of a call of the loop (default 32)")
    parser.add_argument("--width", type=int, default=64, help="of the networks (default 64, upstream's)")
    parser.add_argument("--layers", default="3,4,6,3", help="of the networks (default 3,4,6,3, upstream's)")
    a = parser.parse_args(argv)
    slides = [int(n) for n in a.slides.split(",")]
    if min(slides) < 1 or max(slides) * SHIFT >= a.seconds or a.rounds < 1:
        parser.error(f"--slides {a.slides}: expected 1 to {int(a.seconds / SHIFT) - 1} in {a.seconds:g} s of strain; --rounds at least 1")
    torch.set_num_threads(1)
    size = Size(tuple(int(n) for n in a.layers.split(",")), a.width)
    methods = [Method(name, size, a.seconds, batch=a.batch) for name in METHODS]
    costs = measure(methods, slides, a.rounds)
    result = result_of(costs)
    arithmetic = operations(methods, slides, result["cascade_kept"])
    result["operations"] = {name: {str(n): count for n, count in counts.items()} for name, counts in arithmetic.items()}
    show(
        f"Slides of {a.seconds:g} s of H1 and L1 at 2048 Hz, 4 Hz, layers {a.layers}, width {a.width}, one thread",
        ["", "slides", "CPU s", "s per CPU s", "clustering", "spread", "times less", "wanted"],
        rows_of(costs, result),
        result,
        a.json,
        (
            "x: multiplied up from " + ", ".join(f"{MEASURED[m]} ({m})" for m in METHODS if m != "direct") + ".",
            f"Random weights. The cascade's second network scored {result['cascade_kept']:.1%} of the outputs. Least of {a.rounds} rounds.",
        ),
    )


if __name__ == "__main__":
    main()
