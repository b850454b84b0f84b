"""What `aframe run` prints of candidates."""

from __future__ import annotations

import io

from rich.console import Console

from aframe_ops.cli.results import _show_candidates


def row(**more):
    base = {
        "detection_time": 1126259462.42,
        "detection_statistic": 21.5,
        "far_is_limit": False,
        "far_per_hour": 0.25,
        "p_astro": 0.5,
        "p_astro_low": 0.31,
        "p_astro_high": 0.72,
        "p_astro_is_limit": False,
        "flags": [],
        "matches": [],
    }
    return base | more


def printed(*rows):
    out = io.StringIO()
    _show_candidates({"num_zero_lag": 5, "T0": 7200, "candidates": list(rows)}, Console(file=out, width=200))
    return out.getvalue()


def test_a_limit_is_not_a_bare_number():
    match = {"name": "GW150914", "catalog": "GWTC-1-confident", "offset": 0.02}
    loud = row(
        far_is_limit=True, p_astro=0.99, p_astro_low=0.123, p_astro_high=1.0, p_astro_is_limit=True, matches=[match], flags=["L1:CBC_CAT2"]
    )
    text = printed(loud, row())
    first, second = (next(x for x in text.splitlines() if n in x) for n in ("GW150914", "0.500"))
    assert "< 0.25 /h" in first and "> 0.123" in first and "0.99" not in first and "GW150914 (+0.02 s); L1:CBC_CAT2" in first
    assert " 0.25 /h" in second and "0.500 (0.31 to 0.72)" in second
    assert "are limits" in text and "are limits" not in printed(row())
    assert "0.5" not in printed(row(p_astro=None, p_astro_low=None, p_astro_high=None)), "no model, no number"
