"""What the command line prints of a measurement, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VolumeRow:
    """V of one mass pair at one FAR.

    Attributes:
        pair: as '35 + 20'.
        far: with unit and the error of the background count, as '3 ± 0.3 /h'.
        volume: as '0.52 ± 0.04 Gpc³', '< 0.02 Gpc³ (90 %)', or 'not measurable'.
        samples: effective found injections; None where not measurable.
        status: 'measured', 'upper_limit' or 'not_measurable'.
        note: why it is not a measurement; empty otherwise.
    """

    pair: str
    far: str
    volume: str
    samples: float | None
    status: str
    note: str


def volume_text(row: Mapping[str, Any]) -> str:
    """V of a row of `measurement.summary`, with two digits of its error."""
    if row["status"] == "not_measurable":
        return "not measurable"
    if row["status"] == "upper_limit":
        return f"< {row['upper_limit']:.2g} Gpc³ (90 %)"
    return f"{rounded(row['volume'], row['error'])} Gpc³"


def far_text(row: Mapping[str, Any]) -> str:
    """The FAR of a row, with its error where it was measured."""
    unit = row["far_unit"].removeprefix("1")
    if row["status"] == "not_measurable":
        return f"{row['far']:g} {unit}"
    error = float(f"{row['far'] * row['far_relative_error']:.1g}")
    return f"{row['far']:g} ± {error:g} {unit}"


def rounded(value: float, error: float) -> str:
    """'value ± error' with two digits of the error."""
    import math

    if not error > 0:
        return f"{value:.3g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def text_summary(meta: Mapping[str, Any]) -> list[VolumeRow]:
    """Rows to print, from the meta of the artifact ``sensitive_volume``."""
    return [
        VolumeRow(f"{r['mass_1']:g} + {r['mass_2']:g}", far_text(r), volume_text(r), r.get("effective_samples"), r["status"], r["note"])
        for r in meta["rows"]
    ]


def caveats(meta: Mapping[str, Any]) -> list[str]:
    """Sentences that must stand beside the numbers: what they are, and which rates they cannot speak of."""
    out = []
    if meta["exercise"]:
        out.append("V is an exercise, not a measurement.")
    if meta["aframe_compatible"]:
        out.append("V is computed as by Aframe v1: without redshift weights it is about half to three quarters of the true volume.")
    cut = {f"{r['mass_1']:g} + {r['mass_2']:g}": r["edge_efficiency"] for r in meta["rows"] if r.get("cut_off")}
    if cut:
        pairs = ", ".join(f"{pair} {share:.0%}" for pair, share in cut.items())
        out.append(
            f"V is that within z = {meta['redshift_range'][1]:g}, the farthest injections: some signals of their last tenth of volume "
            f"are still found ({pairs}), and farther ones would be too."
        )
    if not meta["speaks_of_one_per_year"]:
        out.append(
            f"This background ({meta['Tb'] / 3600:,.1f} h) cannot speak about one false alarm per year: "
            f"the lowest measurable FAR is {meta['lowest_count']}/Tb = "
            f"{meta['lowest_far_per_hour']:.3g} /h ({meta['lowest_far_per_year']:,.0f} /yr)."
        )
    return out


def published_lines(meta: Mapping[str, Any]) -> list[str]:
    """Published volumes of the run's pairs, a line for each pair and the note on their data; empty without comparators."""
    found = meta["comparators"]["rows"]
    if not found:
        return []
    lines = []
    for pair in dict.fromkeys((p["mass_1"], p["mass_2"]) for p in found):
        own = [p for p in found if (p["mass_1"], p["mass_2"]) == pair]
        values = ", ".join(f"{p['pipeline']} {p['volume']:.3g}" + ("" if p["far_per_year"] else " (GWTC-3, own threshold)") for p in own)
        lines.append(f"published, {pair[0]:g} + {pair[1]:g}, 1 /yr: {values} Gpc³")
    return [*lines, f"{meta['comparators']['note']} Sources are in the report."]


def p_astro_text(candidate: Mapping[str, Any], short: bool = False) -> str:
    """p_astro of a row of candidates.json with its 90 % interval, as '0.870 (0.72 to 0.93)'.

    Of an event louder than all background only a bound is known: '> 0.13'; the long text adds what the background's tail, continued,
    would give. Empty without a model.
    """
    p, low, high = (candidate[k] for k in ("p_astro", "p_astro_low", "p_astro_high"))
    if p is None:
        return ""
    if low is None:
        return _share(p) + (" (beyond the background)" if candidate["p_astro_is_limit"] else "")
    if candidate["p_astro_is_limit"]:
        bound = f"> {min(low, 0.999):.3f}" if low >= 0.001 else "> 0"
        return bound if short else f"{bound} (by the tail {_share(p)})"
    return f"{_share(p)} ({low:.2g} to {high:.2g})"


def _share(p: float) -> str:
    return "< 0.001" if p < 0.001 else "> 0.999" if p > 0.999 else f"{p:.3f}"


def match_text(candidate: Mapping[str, Any]) -> str:
    """Names of the catalogue events at a candidate, each once, with the offset of the first: 'GW150914, GW150914_095045 (+0.02 s)'."""
    found = candidate["matches"]
    if not found:
        return ""
    return f"{', '.join(dict.fromkeys(m['name'] for m in found))} ({found[0]['offset']:+.2f} s)"


def published_text(match: Mapping[str, Any]) -> str:
    """What a catalogue says of an event: 'FAR 1e-07 /yr, p_astro 1, SNR 26'; empty where it says nothing."""
    parts = (("FAR {:.3g} /yr", "far_per_year"), ("p_astro {:.3g}", "p_astro"), ("SNR {:.3g}", "snr"))
    return ", ".join(text.format(match[key]) for text, key in parts if match[key] is not None)


def candidate_far_text(candidate: Mapping[str, Any], unit: str, relative_error: float | None) -> str:
    """FAR of a candidate with the error of its background count, or the limit that holds where nothing is as loud.

    Args:
        candidate: a row of candidates.json.
        unit: '1/h' or '1/yr'.
        relative_error: of the count (`independence.Independence.relative_error`).
    """
    value = candidate["far_per_hour"] if unit == "1/h" else candidate["far_per_year"]
    if candidate["far_is_limit"]:
        return f"< {value:.3g}"
    if relative_error is None:
        return f"{value:.3g}"
    import math

    # more digits than the error has would be noise
    digits = max(0, 1 - math.floor(math.log10(value * relative_error)))
    if digits > 4 or value >= 1e5:
        return f"{value:.3g} ± {value * relative_error:.2g}"
    return f"{value:.{digits}f} ± {value * relative_error:.{digits}f}"


def gps_date(gps: float) -> str:
    """UTC of a GPS time, to the second."""
    from astropy.time import Time

    return Time(gps, format="gps").utc.strftime("%Y-%m-%d %H:%M:%S UTC")
