"""What the report says of the result: volumes, candidates, catalogue events, published volumes; plain rows for the page's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aframe_assets.segments.vetoes import vetoes_at
from aframe_assets.sensitivity.candidates import analysed
from aframe_assets.sensitivity.plots import UNITS
from aframe_assets.sensitivity.summary import candidate_far_text, far_text, match_text, p_astro_text, published_text, volume_text

if TYPE_CHECKING:
    from aframe_assets.sensitivity.report import Material


def duration(seconds: float) -> str:
    """Seconds in the unit a reader would use."""
    for unit, size in (("yr", 31_557_600.0), ("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds:.4g} s"


def cards(m: Material) -> list[dict[str, str]]:
    """The numbers at the top of the page."""
    v, rows = m.volume, m.candidates["candidates"]
    loudest = rows[0] if rows else None
    unit = m.candidates["far_unit"]
    worth = f"; worth {duration(v['Tb_effective'])} of independent noise" if v["Tb_effective"] else ""
    return [
        {
            "label": "Background livetime Tb",
            "value": duration(v["Tb"]),
            "more": f"{v['num_background']:,} events in slid data{worth}",
        },
        {"label": "Zero lag T0", "value": duration(m.events["T0"]), "more": f"{m.candidates['num_zero_lag']:,} events"},
        {
            "label": f"Lowest measurable FAR, {v['lowest_count']}/Tb",
            "value": f"{v['lowest_far_per_hour']:.3g} /h",
            "more": f"{v['lowest_far_per_year']:,.4g} /yr",
        },
        {"label": "Injections", "value": f"{v['num_accepted']:,}", "more": f"of {v['num_draws']:,} draws; the rest below the SNR cut"},
        {
            "label": "Loudest zero-lag event",
            "value": "none" if loudest is None else next((c["name"] for c in loudest["matches"]), f"{loudest['detection_statistic']:.3g}"),
            "more": "" if loudest is None else f"FAR {_far(loudest, unit)} {unit.removeprefix('1')}",
        },
    ]


def volume_row(r: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of volumes."""
    measured = r["status"] == "measured"
    return {
        "pair": f"{r['mass_1']:g} + {r['mass_2']:g}",
        "far": far_text(r),
        "volume": volume_text(r),
        "span": f"{r['volume_at_far_minus']:.3g} to {r['volume_at_far_plus']:.3g}" if measured else "",
        "distance": f"{r['sensitive_distance']:.0f} ± {r['sensitive_distance_error']:.0f}" if measured else "",
        "vt": f"{r['vt']:.3g}" if measured else "",
        "samples": f"{r['effective_samples']:.1f}" if "effective_samples" in r else "",
        "found": f"{r['num_found']:,}" if "num_found" in r else "",
        "note": r["note"].replace("Gpc^3", "Gpc³"),
        "status": r["status"],
        # what a column is sorted by, where the text is no number
        "far_sort": r["far"] / UNITS[r["far_unit"]],
        "span_sort": r["volume_at_far_minus"] if measured else "",
        "volume_sort": r["volume"] if measured else r.get("upper_limit", ""),
        "distance_sort": r["sensitive_distance"] if measured else "",
        "found_sort": r.get("num_found", ""),
    }


def comparator_rows(m: Material) -> list[dict[str, Any]]:
    """Published volumes of the run's mass pairs, each beside ours at the same rate where that was measured."""
    yearly = {
        (r["mass_1"], r["mass_2"]): r for r in m.volume["rows"] if (r["far"], r["far_unit"], r["status"]) == (1.0, "1/yr", "measured")
    }
    out = []
    for p in m.volume["comparators"]["rows"]:
        ours = yearly.get((p["mass_1"], p["mass_2"]))
        out.append(
            {
                "pair": f"{p['mass_1']:g} + {p['mass_2']:g}",
                "pipeline": p["pipeline"],
                "volume": f"{p['volume']:.3g} ± {p['error']:.1g}",
                "volume_sort": p["volume"],
                "far": "the catalogue's own" if p["far_per_year"] is None else f"{p['far_per_year']:g} /yr",
                "far_sort": "" if p["far_per_year"] is None else p["far_per_year"],
                "ratio": f"{ours['volume'] / p['volume']:.2f}" if ours and p["far_per_year"] == 1 else "",
                "source": f"{p['data']}; {p['source']}",
            }
        )
    return out


def _far(c: Mapping[str, Any], unit: str) -> str:
    return candidate_far_text(c, unit, None)


def candidate_row(c: Mapping[str, Any], unit: str, far_error: float | None = None, page: str = "") -> dict[str, Any]:
    """A row of the table of candidates.

    Args:
        c: a row of candidates.json.
        unit: of FARs.
        far_error: relative error of the background count.
        page: anchor of the event's page, if it has one.
    """
    return {
        "rank": c["rank"],
        "page": page,
        "time": f"{c['detection_time']:.3f}",
        "statistic": f"{c['detection_statistic']:.3f}",
        "far": candidate_far_text(c, unit, far_error),
        "far_sort": c["far"],
        "ifar": f"{'> ' if c['far_is_limit'] else ''}{c['ifar_years']:.3g}",
        "ifar_sort": c["ifar_years"],
        "fap": f"{'< ' if c['far_is_limit'] else ''}{c['false_alarm_probability']:.2g}",
        "fap_sort": c["false_alarm_probability"],
        "p_astro": p_astro_text(c),
        "p_astro_sort": _p_astro_sort(c),
        "flags": ", ".join(c["flags"]),
        "catalog": match_text(c),
    }


def _p_astro_sort(c: Mapping[str, Any]) -> float | str:
    p = c["p_astro_low"] if c["p_astro_is_limit"] else c["p_astro"]
    return "" if p is None else p


def livetime_rows(m: Material) -> list[dict[str, str]]:
    """What was searched: zero lag, slides, injections."""
    e = m.events
    vetoed = e.get("vetoed_livetime", {})

    def row(label: str, kind: str, live: str, events: str) -> dict[str, str]:
        lost = vetoed.get(kind, 0.0)
        return {"label": label, "livetime": live, "vetoed": duration(lost) if lost else "none", "events": events}

    rows = [
        row("zero lag", "zero_lag", duration(e["T0"]), f"{m.candidates['num_zero_lag']:,}"),
        row("slid background", "background", duration(e["Tb"]), f"{e['num_background']:,}"),
    ]
    if "num_foreground" in e:
        found = f", {e['num_found']:,} with an event" if "num_found" in e else ""
        rows.append({"label": "injections", "livetime": "", "vetoed": "", "events": f"{e['num_foreground']:,}{found}"})
    return rows


def catalog_rows(m: Material, pages: Mapping[int, str]) -> list[dict[str, Any]]:
    """Every catalogue event inside the test stretches: what its catalogue says, and what became of it here.

    Args:
        m: all of the report.
        pages: rank -> anchor of a candidate's page.
    """
    stretches = [(r["gps_start"], r["gps_stop"]) for r in m.segments["rows"].values() if r["role"] == "test"]
    unit = m.candidates["far_unit"]
    found = {(x["name"], x["catalog"]): (c, x) for c in m.candidates["candidates"] for x in c["matches"]}
    out = []
    for merger in analysed(m.catalog or (), stretches):
        published = {"far_per_year": merger.far_per_year, "p_astro": merger.p_astro, "snr": merger.snr}
        row = {
            "name": merger.name,
            "catalog": merger.catalog,
            "gps": f"{merger.gps:.1f}" + (f" ± {merger.accuracy:g}" if merger.accuracy else ""),
            "published": published_text(published),
            "gps_sort": merger.gps,
            "page": "",
            "outcome": "none near it",
            "statistic": "",
            "far": "",
            "far_sort": "",
            "p_astro": "",
            "p_astro_sort": "",
        }
        c, x = found.get((merger.name, merger.catalog), (None, None))
        vetoed = vetoes_at(m.vetoes, merger.gps - merger.accuracy, merger.gps + merger.accuracy)
        if c:
            row |= {
                "outcome": f"rank {c['rank']}, {x['offset']:+.2f} s",
                "page": pages.get(c["rank"], ""),
                "statistic": f"{c['detection_statistic']:.3f}",
                "far": f"{_far(c, unit)} {unit.removeprefix('1')}",
                "far_sort": c["far"],
                "p_astro": p_astro_text(c),
                "p_astro_sort": _p_astro_sort(c),
            }
        elif vetoed:
            row["outcome"] = "vetoed: " + ", ".join(dict.fromkeys(f"{v.ifo}:{v.category}" for v in vetoed))
        out.append(row)
    return out


def zero_lag_text(m: Material) -> str:
    """A paragraph on zero lag, and on what p_astro rests on."""
    rows, unit = m.candidates["candidates"], m.candidates["far_unit"]
    limits = sum(c["far_is_limit"] for c in rows)
    text = f"{m.candidates['num_zero_lag']:,} zero-lag events in {duration(m.events['T0'])}. "
    if rows:
        bound = m.volume["far_limit_per_year"] if unit == "1/yr" else m.volume["far_limit_per_year"] / 8766
        text += (
            f"{limits} of them {'is' if limits == 1 else 'are'} louder than all background: "
            f"only a limit, FAR < 1/Tb = {bound:.3g} {unit.removeprefix('1')}, is known. "
            if limits
            else "None is louder than all background. "
        )
    p = m.volume["p_astro"]
    if p is None:
        return text + "p_astro could not be estimated; see the warnings."
    low, high = p["rate_interval"]
    return text + (
        f"p_astro: stated rate {p['rate']:g} Gpc⁻³ yr⁻¹ ({low:g} to {high:g} at 90 %), population {p['population']}, "
        f"V = {p['volume']:.3g} ± {p['volume_error']:.1g} Gpc³ ({p['effective_samples']:.0f} effective found injections). "
        "Its interval holds 90 %, from the errors of rate, volume and background count."
    )


def low_snr_text(m: Material) -> str:
    """How many of the quietest injections were found, against what accident would find; empty where it was not measured."""
    quiet = m.volume.get("accepted_near_cut")
    return f"Near the SNR cut: {quiet['text']}." if quiet and quiet["num"] else ""
