"""Which segments a command is about, in words; and what can be made when only those are worked on."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets.config_load import ConfigError
from aframe_assets.lineage import ROLES

if TYPE_CHECKING:
    from aframe_assets.lineage import Node
    from aframe_assets.store.workspace import Workspace
    from aframe_ops.survey import AssetState

MISSING, FAILED = "missing", "failed"
EXPECTED = (
    f"expected a segment (1240600000-64), GPS times (1240600000..1240700000, either may be left out), a role ({', '.join(ROLES)}), "
    f"{MISSING}, {FAILED}, or @FILE with a segment in each line"
)

_KEY = re.compile(r"\d+-\d+")
_TIMES = re.compile(r"(\d+(?:\.\d+)?)?\.\.(\d+(?:\.\d+)?)?")
_FAILURES = ("failed:", "held back")
"""How the reasons of `survey.why_incomplete` begin that a segment itself gives."""

Rows = Mapping[str, Mapping[str, Any]]


def has_failed(why: str) -> bool:
    """Whether an artifact is incomplete because making it failed, by its reason in the survey."""
    return why.startswith(_FAILURES)


def select(rows: Rows, asked: Sequence[str], states: Collection[AssetState] = (), see: str = "aframe segments list") -> list[str]:
    """Partitions, by time, that fit every one of `asked`; each is a list of words, divided by commas, of which one must fit.

    A word is a segment; FIRST...LAST, segments and all between; START..STOP, GPS times that a segment overlaps; a role; `failed`,
    segments of which making some asset failed; `missing`, of which one is incomplete and none failed; or @FILE, whose lines begin
    with a segment, as those of `aframe segments list` do.

    Args:
        rows: the segments table.
        states: assets that count for `missing` and `failed`.
        see: the command that lists `rows`.

    Raises:
        ConfigError: another word, a segment that is not in the table, or nothing that fits (but for `missing` and `failed`).
    """
    failed = {p for s in states for p, why in s.why.items() if has_failed(why)}
    by_state = {FAILED: failed, MISSING: {p for s in states for p in s.why} - failed}
    chosen, whatever = set(rows), set(rows)
    for text in asked:
        words = [w.strip() for w in text.split(",") if w.strip()]
        found: set[str] = set().union(*(by_state[w] if w in by_state else _word(rows, w, see) for w in words))
        chosen &= found
        whatever &= found | (set(rows) if set(words) & set(by_state) else set())
    if not whatever:
        raise ConfigError(f"--segments {' --segments '.join(asked)}: no segment of {len(rows)} fits; see `{see}`")
    return sorted(chosen, key=lambda p: rows[p]["gps_start"])


def _word(rows: Rows, word: str, see: str) -> set[str]:
    if word in ROLES:
        return {p for p, r in rows.items() if r["role"] == word}
    if _KEY.fullmatch(word):
        return {_known(rows, word, "", see)}
    first, dots, last = word.partition("...")
    if dots and _KEY.fullmatch(first) and _KEY.fullmatch(last):
        start, stop = (rows[_known(rows, key, word, see)]["gps_start"] for key in (first, last))
        return {p for p, r in rows.items() if start <= r["gps_start"] <= stop}
    if (times := _TIMES.fullmatch(word)) and word != "..":
        start, stop = float(times[1] or "-inf"), float(times[2] or "inf")
        if start >= stop:
            raise ConfigError(f"--segments {word}: the first time is not before the second")
        return {p for p, r in rows.items() if r["gps_start"] < stop and r["gps_stop"] > start}
    if word.startswith("@"):
        return _listed(rows, Path(word[1:]).expanduser(), see)
    raise ConfigError(f"--segments {word}: {EXPECTED}")


def _known(rows: Rows, key: str, where: str, see: str) -> str:
    if key not in rows:
        raise ConfigError(f"--segments {where or key}: there is no segment {key}; see `{see}`")
    return key


def _listed(rows: Rows, path: Path, see: str) -> set[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"--segments @{path}: cannot be read: {e}") from None
    found = [(n, line.split()[0]) for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
    return {_known(rows, key, f"@{path}, line {n}", see) for n, key in found}


def doable(workspace: Workspace, states: Mapping[str, AssetState], selected: Collection[str]) -> dict[str, set[str | None]]:
    """What would be made, by asset, if of the segments only `selected` were worked on: whose inputs are there or are made on the way.

    Args:
        states: assets that are wanted, upstream first; others are not made, and count as they are.
    """
    rows = workspace.rows()
    least = workspace.config.execution.min_segment_fraction
    there: dict[str, set[str | None]] = {}
    out: dict[str, set[str | None]] = {}
    for name, node in workspace.graph.items():
        state = states.get(name)
        if state is None or state.done:
            # an asset that is not asked for holds nothing back: what reads it says so when it is made
            there[name] = set(rows) | {None}
            continue
        candidates = [p for p in state.why if p is None or p in selected]
        out[name] = {p for p in candidates if _inputs(node, p, there, rows, least)}
        there[name] = set(state.complete) | out[name]
    return {name: partitions for name, partitions in out.items() if partitions}


def _inputs(node: Node, partition: str | None, there: Mapping[str, set[str | None]], rows: Rows, least: float) -> bool:
    for i in node.inputs:
        if i.how == "row":
            continue
        if i.how == "all":
            own = [p for p, r in rows.items() if r["role"] in i.roles]
            if sum(p in there[i.asset] for p in own) < least * len(own):
                return False
        elif (partition if i.how == "same" else None) not in there[i.asset]:
            return False
    return True


def next_runs(
    work: Mapping[str, set[str | None]],
    graph: Mapping[str, Node],
    incomplete: Iterable[str],
    ranges: Callable[[Collection[str], Collection[str]], list[tuple[str, str]]],
) -> list[tuple[list[str], tuple[str, str] | None]]:
    """The runs that come first, as (assets, range of partitions), of those that make `work`.

    Usually one: segments between those that are worked on are complete, and are looked at in passing. Where others that are not
    asked for lie between, each range is a run of its own; what is one for the whole search is then made by itself.

    Args:
        work: partitions by asset, upstream first; see `doable`.
        incomplete: segments of which something is not complete.
        ranges: (segments to cover, segments to leave out) -> ranges of Dagster's order.
    """
    segments = {p for partitions in work.values() for p in partitions if p is not None}
    if not segments:
        return [(list(work), None)]
    pieces = ranges(segments, set(incomplete) - segments)
    if len(pieces) == 1:
        return [(list(work), pieces[0])]
    waits: set[str] = set()
    first = [n for n in work if graph[n].partitioned]
    for name, node in graph.items():
        if name in work and (not node.partitioned or any(i.asset in waits for i in node.inputs)):
            waits.add(name)
    now = [n for n in first if n not in waits]
    if now:
        own = {p for n in now for p in work[n] if p is not None}
        return [(now, piece) for piece in ranges(own, set(incomplete) - own)]
    held: set[str] = set()
    for name, node in graph.items():
        if name in work and (node.partitioned or any(i.asset in held for i in node.inputs)):
            held.add(name)
    return [([n for n in work if n not in held], None)]
