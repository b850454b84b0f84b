"""The page of each candidate in the report, as plain rows and pictures for the template."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aframe_assets.sensitivity.candidates import FLAG_WINDOW
from aframe_assets.sensitivity.summary import candidate_far_text, gps_date, p_astro_text, published_text
from aframe_assets.strain.event_plots import AFTER, BEFORE

if TYPE_CHECKING:
    from aframe_assets.sensitivity.contributions import Share
    from aframe_assets.sensitivity.examination import Examination


def event_pages(
    candidates: Sequence[Mapping[str, Any]],
    seen: Sequence[Examination],
    unit: str,
    errors: Mapping[int, float],
    zero_lag_text: str,
) -> list[dict[str, Any]]:
    """A page for each candidate that was looked at.

    Args:
        candidates: rows of candidates.json.
        seen: what there is to see at some of them.
        unit: of FARs.
        errors: rank -> relative error of the background count.
        zero_lag_text: livetime that the false-alarm probability is of, in words.
    """
    by_rank = {c["rank"]: c for c in candidates}
    ranks = [e.rank for e in seen]
    out = []
    for i, e in enumerate(seen):
        c = by_rank[e.rank]
        names = list(dict.fromkeys(m["name"] for m in c["matches"]))
        out.append(
            {
                "id": page_id(e.rank),
                "title": f"Candidate {e.rank}" + (f": {', '.join(names)}" if names else ""),
                "previous": page_id(ranks[i - 1]) if i else "",
                "next": page_id(ranks[i + 1]) if i + 1 < len(ranks) else "",
                "facts": _facts(c, e, unit, errors.get(e.rank), zero_lag_text),
                "matches": [
                    {"name": m["name"], "catalog": m["catalog"], "offset": f"{m['offset']:+.3f}", "published": published_text(m)}
                    for m in c["matches"]
                ],
                "strain": _image(e.strain),
                "strain_alt": "Whitened strain of each detector, and below it time and frequency of its excess energy, "
                f"from {BEFORE:g} s before to {AFTER:g} s after the time of the event.",
                "output": _image(e.output),
                "output_alt": _output_alt(e),
                "shares": _shares(e, c["detection_statistic"]),
                "qualities": [_quality(q) for q in e.qualities],
                "vetoes": [
                    {"ifo": v.ifo, "category": v.category, "source": v.source, "span": _relative(v, c["detection_time"])} for v in e.vetoes
                ],
                "veto_window": f"{FLAG_WINDOW:g}",
                "place": e.place,
                "notes": list(e.notes),
            }
        )
    return out


def page_id(rank: int) -> str:
    """The anchor of a candidate's page."""
    return f"candidate-{rank}"


def _facts(c: Mapping[str, Any], e: Examination, unit: str, error: float | None, livetime: str) -> list[tuple[str, str]]:
    per = unit.removeprefix("1")
    louder = "no background event is as loud: a limit" if c["far_is_limit"] else f"{c['num_louder']:,} background events as loud or louder"
    facts = [
        ("Detection time", f"GPS {c['detection_time']:.4f}, {gps_date(c['detection_time'])}"),
        ("Detection statistic", f"{c['detection_statistic']:.4f}"),
        ("False-alarm rate", f"{candidate_far_text(c, unit, error)} {per} ({louder})"),
        ("Inverse false-alarm rate", f"{'> ' if c['far_is_limit'] else ''}{c['ifar_years']:.3g} yr"),
        (
            "False-alarm probability",
            f"{'< ' if c['far_is_limit'] else ''}{c['false_alarm_probability']:.3g} of one or more noise events as loud in {livetime}",
        ),
        ("p_astro, 90 % interval", p_astro_text(c) or "not estimated"),
    ]
    if e.response is not None:
        merger = e.response.merger
        text = "not found: the network's output has no plateau" if merger is None else f"GPS {merger[0]:.4f} ± {merger[1] / 2:.2g} s (90 %)"
        facts.insert(1, ("Merger time", text))
    return facts


def _shares(e: Examination, statistic: float) -> list[dict[str, str]]:
    if e.response is None or not e.response.shares:
        return []

    def row(label: str, value: str, span: str) -> dict[str, str]:
        return {"label": label, "value": value, "span": span}

    everyone = {i for s in e.response.shares for i in s.ifos}
    rows = [row(f"all of {', '.join(sorted(everyone))}", f"{statistic:.3f}", "")]
    return rows + [row(_label(s, everyone), f"{s.median:.3f}", f"{s.low:.3f} to {s.high:.3f}") for s in e.response.shares]


def _label(share: Share, everyone: set[str]) -> str:
    if not share.ifos:
        return "none: noise alone"
    if len(share.ifos) == 1:
        return f"{share.ifos[0]} alone"
    return f"all but {', '.join(sorted(everyone - set(share.ifos)))}"


def _quality(q: Any) -> dict[str, str]:
    return {
        "ifo": q.ifo,
        "std": f"{q.std:.3f}",
        "loudest": f"{q.loudest:.1f} σ at {q.loudest_at:+.2f} s",
        "range": f"{q.inspiral_range:.3g}",
        "reference": "" if q.reference_range is None else f"{q.reference_range:.3g}",
        "flags": "; ".join(q.flags),
    }


def _relative(veto: Any, time: float) -> str:
    return f"{veto.start - time:+.2f} s to {veto.stop - time:+.2f} s"


def _image(png: bytes | None) -> str:
    return "" if png is None else f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _output_alt(e: Examination) -> str:
    if e.output is None or e.response is None:
        return ""
    outputs = e.response.outputs
    return f"The network's output about the event, {outputs.max():.1f} at its highest and {outputs.min():.1f} at its lowest."
