"""What a finished run says: the sensitive volume, and where the report is."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from aframe_assets.sensitivity.summary import caveats, text_summary
from aframe_assets.store.workspace import Workspace


def show_results(workspace: Workspace, console: Console) -> None:
    """Prints V with errors for each mass pair and FAR, what must be said beside it, and the path of the report."""
    volume = workspace.complete("sensitive_volume")
    if volume is not None:
        table = Table(title="sensitive volume", title_justify="left", box=None, pad_edge=False)
        for name in ("masses", "false alarms", "volume", "eff. found", ""):
            table.add_column(name, justify="right" if name == "eff. found" else "left")
        for row in text_summary(volume.meta):
            samples = "" if row.samples is None else f"{row.samples:.3g}"
            table.add_row(row.pair, row.far, row.volume, samples, row.note)
        console.print(table)
        for line in caveats(volume.meta):
            console.print(line, soft_wrap=True)
    report = workspace.complete("report")
    if report is not None:
        console.print(f"report: {workspace.store.open_local(report, 'report.html')}", soft_wrap=True)
