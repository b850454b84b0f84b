"""What a finished run says: the sensitive volume, the loudest zero-lag candidates, and where the report is."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from aframe_assets.sensitivity.summary import caveats, match_text, p_astro_text, published_lines, text_summary
from aframe_assets.store.workspace import Workspace

SHOWN = 8
"""Candidates printed; all of them are in the report."""


def show_results(workspace: Workspace, console: Console) -> None:
    """Prints V with errors for each mass pair and FAR, what must be said beside it, the candidates, and the path of the report."""
    volume = workspace.complete("sensitive_volume")
    if volume is not None:
        table = Table(title="sensitive volume", title_justify="left", box=None, pad_edge=False)
        for name in ("masses", "false alarms", "volume", "eff. found", ""):
            table.add_column(name, justify="right" if name == "eff. found" else "left")
        for row in text_summary(volume.meta):
            samples = "" if row.samples is None else f"{row.samples:.3g}"
            table.add_row(row.pair, row.far, row.volume, samples, row.note)
        console.print(table)
        for line in published_lines(volume.meta):
            console.print(line, soft_wrap=True)
        for line in caveats(volume.meta):
            console.print(line, soft_wrap=True)
    candidates = workspace.complete("candidates")
    if candidates is not None:
        _show_candidates(json.loads(workspace.store.open_local(candidates, "candidates.json").read_text()), console)
    report = workspace.complete("report")
    if report is not None:
        console.print(f"report: {workspace.store.open_local(report, 'report.html')}", soft_wrap=True)


def _show_candidates(found: dict, console: Console) -> None:
    title = f"loudest of {found['num_zero_lag']} zero-lag events in {found['T0'] / 3600:.3g} h"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("detection_time", "detection_statistic", "false alarms", "p_astro (90 %)", "catalogue"):
        table.add_column(name, justify="left" if name == "catalogue" else "right")
    for c in found["candidates"][:SHOWN]:
        far = f"{'< ' if c['far_is_limit'] else ''}{c['far_per_hour']:.3g} /h"
        about = "; ".join(x for x in (match_text(c), ", ".join(c["flags"])) if x)
        table.add_row(f"{c['detection_time']:.2f}", f"{c['detection_statistic']:.2f}", far, p_astro_text(c, short=True), about)
    console.print(table)
    if any(c["p_astro_is_limit"] for c in found["candidates"][:SHOWN]):
        console.print("'<' and '>' are limits: the event is louder than all background.", soft_wrap=True)
