"""``python -m benchmarks.volume [--json]``: V(FAR) of many mass pairs, ours beside a loop over thresholds and pairs.

The loop is what reference 2.13 describes, steps 3 to 6: for each pair the weights of all draws, for each threshold one sum over the
recovered rows for mu and one for sigma. Both sides get the same draws, the same p_source and the same thresholds; ours runs in the
compatible mode, so that the numbers must agree to rounding, and in the corrected mode, which does more and whose time is the ratio's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from aframe_assets.sensitivity.population import LogNormalPair, Population
from aframe_assets.sensitivity.volume import Draws, Sample, estimate
from aframe_assets.waveforms.priors import get_prior
from benchmarks.table import cpu_seconds, show

PRIOR = "end_o3_ratesandpops"


def campaign(num: int, seed: int = 1) -> tuple[Draws, Population]:
    """`num` draws of the default prior with statistics that fall with redshift; those beyond redshift 1 are rejected."""
    prior, rng = get_prior(PRIOR), np.random.default_rng(seed)
    p = prior.sample(num, seed)
    redshift = p["redshift"]
    accepted = redshift < 1
    order = np.argsort(~accepted, kind="stable")  # files hold accepted and rejected draws apart
    statistic = np.where(accepted, 10 * (1 - redshift) + rng.normal(size=num), -np.inf)
    return Draws(statistic[order], p.source().rows(order), accepted[order]), Population.of(prior)


def ours(draws: Draws, population: Population, thresholds: np.ndarray, pairs: list[LogNormalPair], compatible: bool) -> np.ndarray:
    """V and error, Gpc^3, shape (pairs, 2, thresholds)."""
    sample = Sample.of(draws, population, thresholds, compatible=compatible)
    out = [estimate(sample, pair, population) for pair in pairs]
    return np.array([[e.volume, e.error] for e in out])


def reference_weights(draws: Draws, population: Population, pair: LogNormalPair) -> np.ndarray:
    """Normalised weights of all draws (step 3)."""

    def log_normal(mass: np.ndarray, median: float) -> np.ndarray:
        u = np.log(mass / median) / pair.sigma
        return np.exp(-(u**2) / 2) / (mass * pair.sigma * np.sqrt(2 * np.pi))

    source = np.exp(population.log_density(draws.mass_1, draws.mass_2, draws.redshift))
    weights = log_normal(draws.mass_1, pair.mass_1) * log_normal(draws.mass_2, pair.mass_2) / source
    return weights / weights.sum()


def reference_loop(weights: np.ndarray, statistic: np.ndarray, thresholds: np.ndarray, volume: float) -> np.ndarray:
    """V and error at each threshold, one after the other (steps 5 and 6); weights and statistics of recovered rows."""
    out = np.empty((2, len(thresholds)))
    for i, threshold in enumerate(thresholds):
        found = statistic >= threshold
        mu = (weights * found).sum()
        out[:, i] = mu * volume, np.sqrt(((weights * (found - mu)) ** 2).sum()) * volume
    return out


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What `run` returns, and its CPU seconds."""
    start = cpu_seconds()
    value = run()
    return value, cpu_seconds() - start


def measure(num: int, num_thresholds: int, num_pairs: int, num_timed: int) -> dict[str, float]:
    """CPU seconds of both, and how far their numbers differ.

    Args:
        num, num_thresholds, num_pairs: size of the problem.
        num_timed: thresholds of each pair that the loop really runs; its time is scaled to all of them.
    """
    draws, population = campaign(num)
    thresholds = np.linspace(12, 0, num_thresholds)
    pairs = [LogNormalPair(20.0 + 5 * i, 20.0, 0.1) for i in range(num_pairs)]
    ours(draws, population, thresholds[:2], pairs[:1], False)  # imports and the cosmology's integrals are not what is timed
    corrected, seconds = timed(lambda: ours(draws, population, thresholds, pairs, False))
    compatible, seconds_compatible = timed(lambda: ours(draws, population, thresholds, pairs, True))
    some = np.unique(np.linspace(0, num_thresholds - 1, min(num_timed, num_thresholds)).astype(int))
    rows = int(draws.accepted.sum())
    apart = {"volume": 0.0, "error": 0.0}
    weighting = looping = 0.0
    for pair, mine in zip(pairs, compatible, strict=True):
        weights, spent = timed(lambda pair=pair: reference_weights(draws, population, pair))
        weighting += spent
        args = weights[:rows], draws.statistic[:rows], thresholds[some], population.volume
        theirs, spent = timed(lambda args=args: reference_loop(*args))
        looping += spent
        for name, a, b in zip(apart, mine[:, some], theirs, strict=True):
            scale = np.where(b > 0, b, 1)
            apart[name] = max(apart[name], float(np.abs((a - b) / scale).max()))
    reference = weighting + looping * num_thresholds / len(some)
    return {
        "ratio": seconds / reference,
        "seconds": seconds,
        "seconds_compatible": seconds_compatible,
        "seconds_reference": reference,
        "num_injections": num,
        "num_thresholds": num_thresholds,
        "num_pairs": num_pairs,
        "thresholds_timed": len(some),
        "volume_differs": apart["volume"],
        "error_differs": apart["error"],
        "corrected_over_compatible": float(np.median(corrected[:, 0] / np.where(compatible[:, 0] > 0, compatible[:, 0], 1))),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.volume", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--num-injections", type=int, default=1_000_000)
    parser.add_argument("--num-thresholds", type=int, default=1000)
    parser.add_argument("--num-pairs", type=int, default=10)
    parser.add_argument("--thresholds-timed", type=int, default=20, help="thresholds of each pair that the loop runs; the rest is scaled")
    a = parser.parse_args(argv)
    r = measure(a.num_injections, a.num_thresholds, a.num_pairs, a.thresholds_timed)
    scaled = "in full" if r["thresholds_timed"] == r["num_thresholds"] else f"{r['thresholds_timed']} of {r['num_thresholds']}, scaled"
    show(
        f"V(FAR): {a.num_injections:,} injections, {a.num_thresholds:,} thresholds, {a.num_pairs} mass pairs",
        ("", "thresholds run", "CPU s", "over the loop"),
        [
            ("loop over pairs and thresholds", scaled, r["seconds_reference"], 1.0),
            ("ours, compatible mode", "in full", r["seconds_compatible"], r["seconds_compatible"] / r["seconds_reference"]),
            ("ours, corrected", "in full", r["seconds"], r["ratio"]),
        ],
        r,
        a.json,
        (
            f"Largest relative difference of compatible mode and loop: V {r['volume_differs']:.1e}, error {r['error_differs']:.1e}.",
            f"Median of corrected over compatible V: {r['corrected_over_compatible']:.2f}.",
        ),
    )


if __name__ == "__main__":
    main()
