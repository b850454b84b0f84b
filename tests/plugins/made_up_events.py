"""Made-up events with a known sensitive volume, in a real store."""

from __future__ import annotations

import logging

import numpy as np

from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Job
from aframe_assets.waveforms.ledger import EventSet, InjectionParameterSet, RecoveredInjectionSet
from aframe_assets.waveforms.priors import get_prior

HORIZON = 0.35


def write_events(folder, config, seed=1, num_draws=30_000, num_slides=30, live=4000.0, zero_extra=()):
    """Files of the artifact ``events``: exponential noise, injections of the config's prior found iff z < HORIZON."""
    rng = np.random.default_rng(seed)
    Tb = num_slides * live
    n = rng.poisson(Tb / 6)
    shift = np.repeat([[0.0, 1.0]], n, axis=0)
    EventSet(rng.exponential(1.5, n), np.sort(rng.uniform(0, live, n)), shift, Tb=Tb).write(folder / "background.hdf5")
    times = np.concatenate([rng.uniform(0, live, int(live / 6)) + 1240610000, [t for t, _ in zero_extra]])
    stat = np.concatenate([rng.exponential(1.5, int(live / 6)), [x for _, x in zero_extra]])
    EventSet(stat, times, np.zeros((len(times), 2)), Tb=live).write(folder / "0lag.hdf5")

    p = get_prior(config.injections.prior).sample(num_draws, seed).detector()
    p = {k: p[k] for k in InjectionParameterSet.PARAMETERS if k in p}
    p["snr"] = 8 * HORIZON / p["redshift"]
    p["ifo_snrs"] = np.stack([p["snr"], p["snr"]], axis=1) / np.sqrt(2)
    accepted = p["snr"] > 4
    found = p["snr"] > 8
    meta = {"sample_rate": 2048.0, "duration": 8.0, "right_pad": 2.0, "ifos": ["H1", "L1"]}
    m = int(accepted.sum())
    when = rng.uniform(0, live, m)
    statistic = np.where(found[accepted], 20 + rng.normal(size=m), -np.inf)
    RecoveredInjectionSet(
        **{k: v[accepted] for k, v in p.items()},
        injection_time=when,
        detection_statistic=statistic,
        detection_time=np.where(np.isfinite(statistic), when + 0.1, np.nan),
        shift=np.zeros((m, 2)),
        num_injections=num_draws,
        Tb=live,
        **meta,
    ).write(folder / "foreground.hdf5")
    InjectionParameterSet(**{k: v[~accepted] for k, v in p.items()}, num_injections=num_draws - m, **meta).write(
        folder / "rejected-parameters.hdf5"
    )
    counts = {"num_background": n, "num_foreground": m, "num_rejected": num_draws - m}
    return {"Tb": Tb, "T0": live, **counts, "merger_time_calibration": {"offset": 0.0, "width90": 0.1, "num": 10, "edge": "last"}}


class Room:
    """Publishes artifacts and makes the assets of this room in a store."""

    def __init__(self, root, config):
        self.config, self.store, self.handles = config, open_store(root / "store"), {}
        self.folder = root / "files"
        self.folder.mkdir()

    def publish(self, asset, files, meta, checks=()):
        parts = KeyParts(asset=asset, code_version="1")
        self.handles[asset] = self.store.publish(parts, files, meta, checks=checks, provenance={"wall_s": 12.5, "max_rss_mb": 900})

    def text(self, name, text="x"):
        (self.folder / name).write_text(text)
        return {name: self.folder / name}

    def make(self, asset, make):
        with self.store.scratch() as scratch:
            job = Job(self.config, asset, None, self.handles, None, self.store, scratch, scratch, logging.getLogger("test"))
            product = make(job)
            checks = [
                {"name": c.name, "passed": bool(c.passed), "severity": c.severity, "description": c.description} for c in product.checks
            ]
            self.publish(asset, product.files, dict(product.meta), checks)
        return product

    def read(self, asset, name):
        return self.store.open_local(self.handles[asset], name)
