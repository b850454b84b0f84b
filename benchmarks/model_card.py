"""The card of a shipped model, written from its bundle, the run that tested it, and what it was tried on. No figure stands here."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import aframe_assets
from aframe_assets.sensitivity.report_results import duration
from benchmarks.sensitivity import DAY, PAIRS, Search, compare, names_of_quantities, plot

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.waveforms.ledger import EventSet
    from benchmarks.pretrained import Tried

CURVES = "efficiency.svg"


@dataclass(frozen=True)
class Material:
    """What the card is written from.

    Attributes:
        bundle: folder of the bundle.
        evaluation: config of the run that tested it.
        events: folder of that run's asset `events`, and `meta` of it.
        volume: content of its sensitive_volume.json.
        rows: its segments.
        training: config and segments of the run that trained it, or None when they are not known.
        far_per_day: rates of the tables; those below 1 / Tb are left out.
        replicates: of the bootstrap.
    """

    bundle: Path
    evaluation: Config
    events: Path
    meta: Mapping[str, Any]
    volume: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    training: tuple[Config, Mapping[str, Any]] | None
    far_per_day: Sequence[float]
    replicates: int


def noise_kind(config: Config) -> str:
    """The data of an experiment in a few words."""
    if config.strain.source != "simulated":
        return f"strain of {' and '.join(config.ifos)} ({config.strain.source})"
    s = config.strain.simulated
    curves = ", ".join(dict.fromkeys(Path(s.asd[i]).name for i in config.ifos))
    lines = f", lines at {', '.join(f'{x:g}' for x in s.lines)} Hz" if s.lines and s.line_snr else ""
    low, high = s.glitch_snr
    glitches = f", {s.glitch_rate:g} glitches an hour and detector of SNR {low:g} to {high:g}" if s.glitch_rate else ""
    return f"simulated noise (Gaussian, {curves}{lines}{glitches})"


def render(m: Material, tried: Sequence[Tried] | None, slid: EventSet | None) -> str:
    """The card as Markdown; its curves go into the bundle's folder."""
    description = json.loads((m.bundle / "bundle.json").read_text())
    parts = [
        _head(m, description),
        _population(m),
        _training(m, description),
        _test(m),
        _sensitivity(m),
        _tried(tried, slid),
        _limits(m, description),
        _provenance(m, description),
    ]
    return "\n\n".join(p.strip() for p in parts) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(str(c) for c in row) + " |" for row in rows)])


def _livetime(rows: Mapping[str, Mapping[str, Any]], role: str) -> str:
    own = [r for r in rows.values() if r["role"] == role]
    return f"{duration(sum(r['gps_stop'] - r['gps_start'] for r in own))} in {len(own)} segment{'s' if len(own) != 1 else ''}"


def _apart(m: Material) -> bool:
    """Whether no test time was trained or validated on."""
    tested = [r for r in m.rows.values() if r["role"] == "test"]
    seen = [r for r in m.training[1].values() if r["role"] != "test"] if m.training else []
    return bool(seen) and all(a["gps_stop"] <= b["gps_start"] or b["gps_stop"] <= a["gps_start"] for a in seen for b in tested)


def _own(m: Material) -> dict[str, Any]:
    """The settings that are kept in the bundle."""
    return json.loads((m.bundle / "config.json").read_text())


def _head(m: Material, d: Mapping[str, Any]) -> str:
    a, c = d["architecture"], d["conditioning"]
    size = (m.bundle / "model.safetensors").stat().st_size
    context = f", and {a['context']:g} s of context on each side" if a.get("context") else ""
    return f"""# Model card

A `{a["name"]}` network of width {a["width"]} (layers {a["layers"]}), {size / 1e6:.2f} MB, for {" and ".join(d["ifos"])} at \
{d["sample_rate"]:g} Hz. It answers whether a merger lies in {c["kernel_length"]:g} s of whitened strain{context}.
Strain is whitened with the spectrum of the {c["psd_length"]:g} s before it ({c["fftlength"]:g} s transforms), from \
{c["highpass"] or 0:g} to {c["lowpass"] or d["sample_rate"] / 2:g} Hz.

This page was written by `python -m benchmarks.pretrained` from the files of the runs that trained and tested the model."""


def _population(m: Material) -> str:
    from aframe_assets.waveforms.prior_files import path_of

    own = _own(m)
    w, t = own["waveforms"], own["model"]["training"]
    path = path_of(w["prior"])
    lines = [x for x in path.read_text().splitlines() if x.strip() and not x.startswith("#")] if path else []
    text = "```text\n" + "\n".join(lines) + "\n```" if lines else ""
    return f"""## Population

Trained on {w["num_training_signals"]:,} signals of the population `{Path(w["prior"]).name}` with {w["approximant"]}, each at many sky \
positions and scaled to a network SNR between {t["min_snr"]:g} and {t["max_snr"]:g} (density falling as SNR^{t["snr_alpha"]:g}).

{text}"""


def _training(m: Material, d: Mapping[str, Any]) -> str:
    t, p = _own(m)["model"]["training"], d["provenance"]
    windows = p["epochs"] * t["batches_per_epoch"] * t["batch_size"]
    lines = [
        f"- {windows:,} windows: {p['epochs']} epochs of {t['batches_per_epoch']} batches of {t['batch_size']}; "
        f"epoch {p['best_epoch']} is kept.",
        f"- Of the windows {t['waveform_prob']:.0%} hold a signal; {t['swap_prob']:.0%} hold different signals in their detectors and "
        f"{t['mute_prob']:.0%} a signal in one alone, both to be refused; {t['glitch_prob']:.0%} of detectors get a further glitch.",
    ]
    if m.training is None:
        lines.append("- Its data are not known here beyond the bundle's own `config.json`.")
    else:
        config, rows = m.training
        lines.append(f"- Noise: {noise_kind(config)}; {_livetime(rows, 'train')}, and for validation {_livetime(rows, 'validation')}.")
    numbers = {k: v for k, v in d["metrics"].items() if isinstance(v, float) and k.startswith(("valid", "train"))}
    lines.append("- Validation: " + ", ".join(f"{k} {v:.4g}" for k, v in sorted(numbers.items())) + ".")
    curve = m.bundle / "metrics.csv"
    if curve.is_file():
        with curve.open() as f:
            rows = list(csv.DictReader(f))
        chosen = [rows[i] for i in sorted({round(x) for x in np.linspace(0, len(rows) - 1, 6)})]
        columns = ("epoch", "train_loss", "valid_auroc", "valid_efficiency")
        lines += ["", _table(columns, [[_short(r.get(c, "")) for c in columns] for r in chosen])]
    return "## Training\n\n" + "\n".join(lines)


def _short(text: str) -> str:
    return text if text.isdigit() or not text else f"{float(text):.4g}"


def _test(m: Material) -> str:
    c, i = m.evaluation, m.evaluation.inference
    calibration = m.meta["merger_time_calibration"]
    return f"""## Test

- Noise: {noise_kind(c)}; {_livetime(m.rows, "test")}{", none of it seen in training" if _apart(m) else ""}.
- Slides of it give Tb = {duration(m.meta["Tb"])} of background with {m.meta["num_background"]:,} events; zero lag {duration(m.meta["T0"])}.
- {m.volume["num_draws"]:,} draws of the population `{Path(c.injections.prior).name}`, of which {m.volume["num_accepted"]:,} pass the \
SNR cut and were injected into slides.
- The network is asked {i.inference_rate:g} times a second; its answers are integrated over {i.integration_window_length:g} s and \
clustered over {i.cluster_window_length:g} s.
- Merger times: by {calibration["num"]} injections, half-width {calibration["width90"] / 2:.3f} s at 90 % ({calibration["edge"]} of the \
plateau less {calibration["offset"]:+.3f} s)."""


def _sensitivity(m: Material) -> str:
    live = m.meta["Tb"]
    wanted = sorted(f for f in m.far_per_day if f / DAY * live >= 1) or [DAY / live]
    search = Search.read(m.events, m.evaluation.injections.prior, m.evaluation.inference.recovery_window)
    found = compare({"model": [search]}, [f / DAY for f in wanted], m.replicates)["model"]
    names = names_of_quantities()
    columns = ["", *(f"FAR {f:.3g} a day" for f in wanted)]

    def rows(part: slice, digits: int) -> list[list[str]]:
        return [
            [name, *(f"{found['value'][i, q]:.{digits}f} ± {found['error'][i, q]:.{digits}f}" for i in range(len(wanted)))]
            for q, name in list(enumerate(names))[part]
        ]

    volumes, bins = rows(slice(len(PAIRS)), 3), rows(slice(len(PAIRS), None), 3)
    left_out = [f"{f:g}" for f in m.far_per_day if f not in wanted]
    plot({"model": found}, [f / DAY for f in wanted], m.bundle / CURVES)
    note = f" Rates below 1/Tb ({', '.join(left_out)} a day) cannot be measured." if left_out else ""
    warnings = "".join(f"\n- {w}" for w in m.volume["warnings"])
    return f"""## Sensitivity

Volumes in Gpc³ for source-frame masses spread log-normally around each pair; below, the share of injections found by network SNR. \
Errors: bootstrap over {m.replicates} draws of blocks of strain of each detector and of injections. What trainings \
with other seeds scatter by is not in them.{note}

{_table(columns, volumes)}

{_table(columns, bins)}

Both as curves: `{CURVES}`.
{warnings}"""


def _tried(tried: Sequence[Tried] | None, slid: EventSet | None) -> str:
    if tried is None and slid is None:
        return "## Real data\n\nNot tried on any."
    out = ["## Real data"]
    if tried is not None:
        columns = ("event", "rank in its files", "detection_time", "merger_time", "90 % width", "statistic", "next loudest", "false alarms")
        out += [
            "Files around catalogued mergers, searched with `aframe detect`. Times are relative to the catalogue's (to 0.1 s); the rate "
            "is against the simulated background above and says nothing of the noise in these files.",
            _table(columns, [_event(t) for t in tried]),
        ]
    if slid is not None:
        loudest = sorted(slid.detection_statistic, reverse=True)[:3]
        detected = [t.statistic for t in tried or () if t.rank == 1 and t.statistic is not None]
        beaten = sum(x < max(loudest, default=-np.inf) for x in detected)
        compared = (
            f" {beaten} of the {len(detected)} mergers that lead their files are fainter than the loudest of these." if detected else ""
        )
        out.append(
            f"One detector's real noise against itself, slid: {len(slid)} events in {duration(slid.Tb)}, "
            f"the loudest {', '.join(f'{x:.2f}' for x in loudest)}.{compared} A smoke test: one detector twice is not two."
        )
    return "\n\n".join(out)


def _event(t: Tried) -> tuple[str, ...]:
    if t.rank is None:
        return (t.name, "not among the candidates", "", "", "", "", _number(t.next_statistic), "")
    merger = "none" if t.merger_offset is None else f"{t.merger_offset:+.3f} s"
    width = "" if t.width90 is None else f"{t.width90:.3f} s"
    far = "" if t.far is None else f"{'< ' if t.far_is_limit else ''}{t.far * DAY:.3g} a day"
    return (t.name, str(t.rank), f"{t.detection_offset:+.3f} s", merger, width, _number(t.statistic), _number(t.next_statistic), far)


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}"


def _limits(m: Material, d: Mapping[str, Any]) -> str:
    own, c = _own(m), d["conditioning"]
    need = c["psd_length"] + c["fduration"] + c["kernel_length"] + 2 * d["architecture"].get("context", 0.0)
    training = m.training[0] if m.training else None
    lines = [
        f"- It needs all of {', '.join(d['ifos'])} at once, and no others; a time at which one is off is not searched.",
        f"- It needs some {need + m.evaluation.inference.integration_window_length:.0f} s of strain before it says anything: "
        f"{c['psd_length']:g} s of them give the first spectrum.",
        f"- Signals outside `{Path(own['waveforms']['prior']).name}` were not in its training; for them it promises nothing.",
        f"- Its lowest measured false-alarm rate is 1/Tb = {DAY / m.meta['Tb']:.3g} a day. Candidates louder than all of its background "
        "are given that as a limit.",
    ]
    if training is None or training.strain.source == "simulated":
        lines.insert(
            0, "- Trained on simulated noise. Glitches of real detectors look otherwise: rates measured above do not hold for them."
        )
    if m.evaluation.strain.source == "simulated":
        lines.append(
            "- A false-alarm rate for real data needs a background of those data: `aframe init RUN --preset o3 --weights pretrained`."
        )
    return "## Limits\n\n" + "\n".join(lines)


def _provenance(m: Material, d: Mapping[str, Any]) -> str:
    weights = hashlib.sha256((m.bundle / "model.safetensors").read_bytes()).hexdigest()
    inputs = "".join(f"\n- trained on {name}: {v['sha256'][:16]}" for name, v in sorted(d["provenance"].get("inputs", {}).items()))
    return f"""## Provenance

- weights: sha256 {weights}
- seed {d["provenance"].get("seed")}, aframe-dagster {aframe_assets.__version__}{inputs}
- licence: {d["licence"]}"""
