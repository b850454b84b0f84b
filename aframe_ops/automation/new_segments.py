"""New segments: which are not searched yet, and the one run that is to be started for them, if any.

Nothing is remembered that the store knows. What is remembered, how often a segment was tried, says when to stop trying.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aframe_assets.segments.strain_headers import StrainError
from aframe_assets.store.workspace import MissingArtifact, Workspace

CHAIN = ("background", "background_index", "psd", "vetoes", "injections", "inference_results")
"""Assets that new segments are taken through. No training is among them."""

TRAINED = ("model", "filter_model", "engine", "model_repository")
"""What must have been made by hand before anything is searched."""

FULL = 500
"""Segments of one run at most."""


@dataclass
class Memory:
    """What a sensor keeps between its evaluations.

    Attributes:
        asked: run key of the run that was asked for last, and what it was to make; {} once it has been accounted for.
        tried: segment, or 'segments:' and a key, -> times tried, and when it may be tried again (seconds since 1970).
        told: of these, those that were reported as given up.
    """

    asked: dict[str, Any] = field(default_factory=dict)
    tried: dict[str, tuple[int, float]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, cursor: str | None) -> Memory:
        """That of a cursor; empty without one."""
        data = json.loads(cursor) if cursor else {}
        return cls(data.get("asked", {}), {k: (n, t) for k, (n, t) in data.get("tried", {}).items()}, data.get("told", []))

    @property
    def cursor(self) -> str:
        return json.dumps({"asked": self.asked, "tried": self.tried, "told": self.told})

    def count(self, names: Iterable[str], now: float, wait_s: float) -> None:
        """Notes that `names` were tried once more, without success."""
        for name in names:
            times = self.tried.get(name, (0, 0.0))[0] + 1
            self.tried[name] = times, now + wait_s * 2 ** (times - 1)


@dataclass(frozen=True)
class Wish:
    """A run that is wanted.

    Attributes:
        key: run key: the same wish has the same.
        assets: to be made.
        segments: partitions to be made; empty of a run that makes the segments table.
    """

    key: str
    assets: tuple[str, ...]
    segments: tuple[str, ...] = ()


@dataclass
class Decision:
    """What is to be done now.

    Attributes:
        why: in words, for whoever looks at the sensor.
        wish: a run to start.
        register: partitions to add, in this order.
        given_up: segment -> the last reason, of those that are not tried again and were not reported yet.
    """

    why: str
    wish: Wish | None = None
    register: tuple[str, ...] = ()
    given_up: dict[str, str] = field(default_factory=dict)


def decide(
    workspace: Workspace,
    memory: Memory,
    registered: Collection[str],
    *,
    until: str,
    attempts: int,
    wait_s: float,
    now: float,
    ended: bool,
) -> Decision:
    """What new data ask for.

    Args:
        workspace: experiment and store as they are now.
        memory: changed in place.
        registered: partitions that Dagster knows.
        until: 'background' or 'inference_results'.
        attempts: times that a segment is tried.
        wait_s: seconds before the second try; doubled before each further one.
        now: seconds since 1970.
        ended: the run of ``memory.asked`` is over, however it ended.
    """
    try:
        wanted = workspace.wanted("segments").parts
    except StrainError as e:
        return Decision(f"no segments yet: {e}")
    table = workspace.store.complete(wanted)
    # a clock that was set back would have them wait for the time that there was before
    memory.tried = {k: (n, min(t, now + wait_s * 2 ** (n - 1))) for k, (n, t) in memory.tried.items()}
    if memory.asked and ended:
        _account(workspace, memory, table is not None, now, wait_s)
    if table is None:
        return _table(workspace, memory, f"segments:{wanted.key[:16]}", attempts, now)
    try:
        rows = workspace.rows()
    except MissingArtifact as e:
        return Decision(str(e))
    register = tuple(k for k in sorted(rows) if k not in registered)
    final = until if until in workspace.graph else "background"
    missing = [p for p, row in rows.items() if row["role"] == "test" and not _made(workspace, final, p)]
    memory.tried = {k: v for k, v in memory.tried.items() if k in missing}
    memory.told = [k for k in memory.told if k in memory.tried]
    over = [p for p in missing if memory.tried.get(p, (0, 0.0))[0] >= attempts]
    given_up = {p: reason(workspace, final, p) for p in over if p not in memory.told}
    memory.told += list(given_up)
    due = [p for p in missing if p not in over and memory.tried.get(p, (0, 0.0))[1] <= now][:FULL]
    assets = _assets(workspace, until)
    stuck = _stuck(workspace, over, len(rows))
    words = [f"{len(rows)} segments, {len(missing)} test segments without {final}"]
    if over:
        words.append(f"{len(over)} given up after {attempts} tries: {', '.join(over[:5])}{', ...' if len(over) > 5 else ''}")
    if stuck and until != "background":
        words.append(stuck)
        assets = ("background",)
        due = [p for p in due if not _made(workspace, "background", p)]
    if assets == ("background",) and final != "background":
        if not stuck:
            words.append(f"no {final}: {', '.join(_untrained(workspace))} must be made by `aframe run` first")
        due = [p for p in due if not _made(workspace, "background", p)]
    if not due:
        later = [t for p, (_, t) in memory.tried.items() if p not in over and t > now]
        if later:
            words.append(f"{len(later)} are tried again in {min(later) - now:.0f} s")
        return Decision("; ".join(words), None, register, given_up)
    wish = Wish(_run_key(due, assets, wanted.key, memory), assets, tuple(due))
    memory.asked = {"key": wish.key, "segments": list(due), "final": assets[-1]}
    return Decision("; ".join([*words, f"starting {len(due)}"]), wish, register, given_up)


def _table(workspace: Workspace, memory: Memory, name: str, attempts: int, now: float) -> Decision:
    times, again = memory.tried.get(name, (0, 0.0))
    if times >= attempts:
        why = reason(workspace, "segments", None)
        given_up = {} if name in memory.told else {name: why}
        memory.told = [*memory.told, *given_up]
        return Decision(f"the segments table was not made in {times} tries: {why}", given_up=given_up)
    if again > now:
        return Decision(f"the segments table is tried again in {again - now:.0f} s: {reason(workspace, 'segments', None)}")
    wish = Wish(f"{name}:{times}", ("segments",))
    memory.asked = {"key": wish.key, "table": name}
    return Decision("the segments table is out of date", wish)


def _account(workspace: Workspace, memory: Memory, table: bool, now: float, wait_s: float) -> None:
    asked, memory.asked = memory.asked, {}
    if "table" in asked:
        if not table:
            memory.count([asked["table"]], now, wait_s)
        return
    memory.count([p for p in asked["segments"] if not _made(workspace, asked["final"], p)], now, wait_s)


def _made(workspace: Workspace, asset: str, partition: str) -> bool:
    # by whatever key: an artifact that is out of date is no new data, and is left to `aframe run`
    manifest = workspace.manifest(asset, partition)
    return manifest is not None and manifest.status == "ok" and not manifest.blocked


def _untrained(workspace: Workspace) -> list[str]:
    def made(asset: str) -> bool:
        manifest = workspace.manifest(asset)
        return manifest is not None and manifest.status == "ok"

    needed = {i.asset for i in workspace.graph["inference_results"].inputs} & set(TRAINED)
    return [a for a in TRAINED if a in needed and not made(a)]


def _assets(workspace: Workspace, until: str) -> tuple[str, ...]:
    if until == "background" or _untrained(workspace):
        return ("background",)
    return tuple(a for a in CHAIN if a in workspace.graph)


def _stuck(workspace: Workspace, over: Sequence[str], total: int) -> str:
    least = workspace.config.execution.min_segment_fraction
    gone = [p for p in over if not _made(workspace, "background", p)]
    if not gone or total - len(gone) >= least * total:
        return ""
    return (
        f"only background is made, since {len(gone)} of {total} segments have none and execution.min_segment_fraction is {least:g}: "
        f"lower it, or take the segments out (`aframe segments retire --segments {gone[0]} --reason ...`)"
    )


def reason(workspace: Workspace, asset: str, partition: str | None) -> str:
    """Why an artifact is not there, as far as the store knows."""
    for name in dict.fromkeys((asset, *CHAIN)):
        if name in workspace.graph and (name == asset or workspace.graph[name].partitioned):
            manifest = workspace.manifest(name, partition)
            if manifest is not None and manifest.status != "ok":
                return f"{name}: {(manifest.error or 'no reason recorded').strip().splitlines()[0]}"
            if manifest is not None and manifest.blocked:
                return f"{name} is held back by its check {', '.join(manifest.blocked)}"
    return "its run failed; see its log"


def _run_key(due: Sequence[str], assets: Sequence[str], table: str, memory: Memory) -> str:
    tries: Mapping[str, int] = {p: memory.tried.get(p, (0, 0.0))[0] for p in due}
    digest = hashlib.sha256(json.dumps([tries, list(assets), table]).encode()).hexdigest()
    return f"{due[0]}+{len(due) - 1}:{digest[:16]}"
