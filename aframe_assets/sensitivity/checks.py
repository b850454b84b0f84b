"""What must hold of a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.sensitivity.volume import COVERAGE_FLOOR
from aframe_assets.store.job import Check, Declared

if TYPE_CHECKING:
    from aframe_assets.sensitivity.candidates import Candidate
    from aframe_assets.sensitivity.measurement import Measurement

VOLUME_CHECKS = [
    Declared("volume_monotonic_in_far", False, "V never falls with rising FAR."),
    Declared("volume_finite", False, "V and its error are finite, V is not negative, and there is a FAR at which it is measured."),
    Declared(
        "effective_samples", False, "Every tabulated rate has at least `sensitivity.min_effective_samples` effective found injections."
    ),
    Declared("weights_average_to_one", False, "Weights of all draws average to one within their scatter: injections follow their prior."),
    Declared("targets_covered", False, f"At least {COVERAGE_FLOOR:.0%} of each target population lies inside the injections' prior."),
    Declared("redshifts_covered", False, "Hardly any of the farthest injections are found, so V is not cut off by the prior's redshifts."),
    Declared("snr_cut_loses_nothing", False, "0 of the injections just above the SNR cut are found, but by accident."),
]
CANDIDATE_CHECKS = [Declared("far_falls_with_statistic", False, "No louder candidate has a higher FAR.")]


def volume_checks(m: Measurement) -> list[Check]:
    """The checks of `sensitive_volume`."""
    curves, names = m.curves.curves, [t.label for t in m.curves.targets]
    falling = [n for n, c in zip(names, curves, strict=True) if (np.diff(c.volume) < -1e-9 * m.curves.v0).any()]
    broken = [n for n, c in zip(names, curves, strict=True) if not (np.isfinite([c.volume, c.error]).all() and (c.volume >= 0).all())]
    text = f"V is not finite for {', '.join(broken)}" if broken else ""
    if not len(m.curves.fars):
        text = f"the FAR grid is empty: {len(m.background.statistics)} background events"
    limits = [r for r in m.curves.rows if r["status"] != "measured"]
    shaky = [n for n, c in zip(names, curves, strict=True) if not c.agrees]
    cut = [f"{n}: {c.coverage:.1%}" for n, c in zip(names, curves, strict=True) if c.coverage < COVERAGE_FLOOR]
    near = [
        f"({r['mass_1']:g}, {r['mass_2']:g}) at {r['far']:g} {r['far_unit']}: {r['edge_efficiency']:.0%}"
        for r in m.curves.rows
        if r.get("cut_off")
    ]
    quiet = m.curves.quiet
    return [
        Check("volume_monotonic_in_far", not falling, "error", f"V falls with rising FAR for {', '.join(falling)}" if falling else ""),
        Check("volume_finite", not text, "error", text),
        Check(
            "effective_samples",
            not limits,
            "warn",
            "; ".join(f"({r['mass_1']:g}, {r['mass_2']:g}) at {r['far']:g} {r['far_unit']}: {r['note']}" for r in limits[:8]),
            {"measured": len(m.curves.rows) - len(limits), "not_measured": len(limits)},
        ),
        Check("weights_average_to_one", not shaky, "warn", f"injections do not follow their prior: {', '.join(shaky)}" if shaky else ""),
        Check("targets_covered", not cut, "warn", f"share of the target inside the injections' prior: {', '.join(cut)}" if cut else ""),
        Check(
            "redshifts_covered",
            not near,
            "warn",
            f"share found of the farthest injections, beyond which V counts nothing: {'; '.join(near[:8])}" if near else "",
        ),
        Check(
            "snr_cut_loses_nothing",
            quiet is None or (quiet.num > 0 and not quiet.lost),
            "warn",
            quiet.text if quiet and (quiet.lost or not quiet.num) else "",
            {} if quiet is None else {"num": quiet.num, "num_found": quiet.num_found, "accidental": quiet.accidental},
        ),
    ]


def candidate_checks(candidates: Sequence[Candidate]) -> list[Check]:
    """The checks of `candidates`."""
    far = [c.far for c in candidates]
    good = all(a <= b for a, b in pairwise(far)) and all(np.isfinite(far))
    return [Check("far_falls_with_statistic", good, "error", "" if good else "a louder candidate has a higher FAR")]
