"""How the result of a report was made: which artifact from which, when, where, and at what cost."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from aframe_assets.sensitivity.plots import COLOURS, Figure, make_figure
from aframe_assets.sensitivity.report_results import duration

if TYPE_CHECKING:
    from aframe_assets.lineage import Node
    from aframe_assets.store.handle import Manifest

Manifests = Mapping[str, Mapping[str | None, "Manifest"]]
"""asset -> partition (None where there are none) -> manifest."""

_ROW, _BOX, _HEIGHT, _WIDTH = 62, 176, 34, 1000
"""Of the graph, in pixels: rows apart, width and height of a box, width of all."""


def size_text(nbytes: float) -> str:
    """Bytes in the unit a reader would use."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return ""


def _made(records: Mapping[str | None, Manifest]) -> dict[str | None, Manifest]:
    return {p: x for p, x in records.items() if x.handle is not None}


def artifact_rows(graph: Mapping[str, Node], manifests: Manifests) -> list[dict[str, Any]]:
    """A row for each asset: key, content hash, size, and what it was made from."""
    from aframe_assets import lineage

    out = []
    for asset, records in manifests.items():
        done = _made(records)
        if not done:
            continue
        one = done[None] if None in done else None
        nbytes = sum(x.handle.nbytes for x in done.values())
        out.append(
            {
                "asset": asset,
                "label": asset if one else f"{asset}, {len(done)} stretches",
                "version": next(iter(done.values())).parts.code_version,
                "key": one.handle.key[:16] if one else "one each",
                "sha256": one.handle.sha256[:16] if one else "one each",
                "size": size_text(nbytes),
                "nbytes": nbytes,
                "inputs": [i for i in lineage.deps(graph[asset]) if i in manifests] if asset in graph else [],
            }
        )
    return out


def step_rows(manifests: Manifests) -> list[dict[str, Any]]:
    """A row for each asset: time, processor, memory, machines."""
    out = []
    for asset, records in manifests.items():
        known = [x.provenance for x in _made(records).values()]
        if not known:
            continue
        wall, cpu = (sum(x.get(k, 0) for x in known) for k in ("wall_s", "cpu_s"))
        memory = max(x.get("max_rss_mb", 0) for x in known)
        hosts = sorted({x["host"] for x in known if x.get("host")})
        ended = max((x["created"] for x in known if x.get("created")), default="")
        out.append(
            {
                "asset": asset,
                "count": f"{len(known):,}",
                "number": len(known),
                "wall": duration(wall),
                "wall_s": f"{wall:.6g}",
                "cpu": duration(cpu) if cpu else "",
                "cpu_s": f"{cpu:.6g}",
                "memory": f"{memory / 1024:.2f} GB" if memory else "",
                "memory_mb": f"{memory:.6g}",
                "hosts": ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""),
                "ended": ended[:19].replace("T", " "),
            }
        )
    return out


def total_text(manifests: Manifests) -> str:
    """Time, processor time and volume of all that the report rests on, in a sentence."""
    known = [x for records in manifests.values() for x in _made(records).values()]
    wall, cpu = (sum(x.provenance.get(k, 0) for x in known) for k in ("wall_s", "cpu_s"))
    return (
        f"{len(known):,} artifacts of {size_text(sum(x.handle.nbytes for x in known))}: {duration(wall)} of steps"
        + (f", {duration(cpu)} of one processor core" if cpu else "")
        + ". Steps of artifacts that were taken over from an earlier run are in it."
    )


def timeline_figure(manifests: Manifests) -> list[Figure]:
    """When each asset was being made; nothing where no time is known."""
    import plotly.graph_objects as go

    spans = {a: own for a, records in manifests.items() if (own := _spans(_made(records).values()))}
    if not spans:
        return []
    whole = max(s[-1][1] for s in spans.values()) - min(s[0][0] for s in spans.values())
    figure = go.Figure()
    for i, (asset, own) in enumerate(spans.items()):
        # what the eye cannot tell apart is one bar: there may be thousands of stretches
        joined = _joined(own, whole / 500)
        seconds = [(stop - start).total_seconds() for start, stop in joined]
        figure.add_bar(
            y=[asset] * len(joined),
            x=[1000 * s for s in seconds],
            base=[start.isoformat() for start, _ in joined],
            orientation="h",
            marker={"color": COLOURS[i % len(COLOURS)]},
            customdata=[duration(s) for s in seconds],
            hovertemplate=f"{html.escape(asset)}<br>%{{base}}<br>%{{customdata}}<extra></extra>",
            showlegend=False,
        )
    figure.update_layout(barmode="overlay", bargap=0.35)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(type="date", title="UTC")
    caption = "When each asset was made. Stretches made at the same time are one bar."
    return [make_figure("timeline", "Timeline", caption, figure, 110 + 26 * len(spans))]


def _spans(records: Iterable[Manifest]) -> list[tuple[datetime, datetime]]:
    """When each of the artifacts was being made, by time; those that do not tell are left out."""
    spans = []
    for x in records:
        try:
            stop = datetime.fromisoformat(x.provenance["created"])
            spans.append((stop - timedelta(seconds=max(float(x.provenance["wall_s"]), 1.0)), stop))
        except (KeyError, ValueError, TypeError):
            continue
    return sorted(spans)


def _joined(spans: Iterable[tuple[datetime, datetime]], gap: timedelta) -> list[tuple[datetime, datetime]]:
    """Sorted `spans`, those less than `gap` apart as one."""
    joined: list[tuple[datetime, datetime]] = []
    for start, stop in spans:
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((start, stop))
    return joined


def graph_svg(graph: Mapping[str, Node], manifests: Manifests) -> str:
    """The graph of what was made from what as inline SVG, inputs above; boxes are links to the rows of `artifact_rows`.

    Of an input that is also reached by way of another only the longer way is drawn. Layers are those of longest paths; within them boxes
    stand near the middle of what they are joined to (Sugiyama, Tagawa & Toda 1981, IEEE Trans. SMC 11, 109).
    """
    import networkx as nx

    from aframe_assets import lineage

    names = [a for a, records in manifests.items() if _made(records) and a in graph]
    full = nx.DiGraph()
    full.add_nodes_from(names)
    full.add_edges_from((i, a) for a in names for i in lineage.deps(graph[a]) if i in names)
    drawn = nx.transitive_reduction(full)
    layer = {n: k for k, nodes in enumerate(nx.topological_generations(drawn)) for n in nodes}
    # an edge over several layers gets a place in each, so that it goes round the boxes
    points, chains = nx.DiGraph(), []
    points.add_nodes_from((n, {"layer": layer[n]}) for n in names)
    for a, b in sorted(drawn.edges):
        chain = [a, *((a, b, k) for k in range(layer[a] + 1, layer[b])), b]
        points.add_nodes_from((p, {"layer": p[2]}) for p in chain[1:-1])
        nx.add_path(points, chain)
        chains.append(chain)
    x = _places(points, 1 + max(layer.values(), default=0))
    height = _ROW * (1 + max(layer.values(), default=0))
    y = {p: _ROW * points.nodes[p]["layer"] + _ROW / 2 for p in points}
    lines = []
    for chain in chains:
        path = [f"M{x[chain[0]]:.0f},{y[chain[0]] + _HEIGHT / 2:.0f}"]
        for before, after in pairwise(chain):
            start = y[before] + (_HEIGHT / 2 if before == chain[0] else 0)
            stop = y[after] - (_HEIGHT / 2 if after == chain[-1] else 0)
            middle = (start + stop) / 2
            path.append(f"C{x[before]:.0f},{middle:.0f} {x[after]:.0f},{middle:.0f} {x[after]:.0f},{stop:.0f}")
        lines.append(f'<path d="{"".join(path)}"/>')
    boxes = []
    for n in names:
        done = _made(manifests[n])
        under = done[None].handle.key[:12] if None in done else f"{len(done):,} stretches"
        failed = any(not c["passed"] for m in done.values() for c in m.checks)
        boxes.append(
            f'<a href="#artifact-{n}"><title>{n}: {under}{", with failed checks" if failed else ""}</title>'
            f'<rect x="{x[n] - _BOX / 2:.0f}" y="{y[n] - _HEIGHT / 2:.0f}" width="{_BOX}" height="{_HEIGHT}" rx="6"'
            f"{' class=' + chr(34) + 'doubt' + chr(34) if failed else ''}/>"
            f'<text x="{x[n]:.0f}" y="{y[n] - 2:.0f}">{n}</text><text class="small" x="{x[n]:.0f}" y="{y[n] + 12:.0f}">{under}</text></a>'
        )
    return (
        f'<svg class="graph" viewBox="0 0 {_WIDTH} {height}" role="group" aria-label="What was made from what">'
        f'<g class="lines">{"".join(lines)}</g>{"".join(boxes)}</svg>'
    )


def _places(points: Any, layers: int) -> dict[Any, float]:
    """Horizontal place of each point, pixels."""
    rows = [[p for p in points if points.nodes[p]["layer"] == k] for k in range(layers)]
    at: dict[Any, float] = {}
    for sweep in range(6):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            near = points.predecessors if sweep % 2 == 0 else points.successors
            wish = {p: [at[q] for q in near(p) if q in at] for p in row}
            row.sort(key=lambda p: (sum(wish[p]) / len(wish[p]) if wish[p] else at.get(p, 0.5), str(p)))
            for i, p in enumerate(row):
                at[p] = (i + 0.5) / len(row)
    return {p: _BOX / 2 + 6 + (_WIDTH - _BOX - 12) * place for p, place in at.items()}
