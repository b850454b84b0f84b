"""What of a segments table stays when it is made again, as for data that came late.

A chunk keeps its bounds and its role while it lies in science time of every detector and in its role's window, so that what was made
of it counts on. Only time outside of such chunks is cut. How many slides there are and where their injections go was decided for the
test chunks of the first table; later chunks follow that decision and change nothing of it. Chunks that were retired stay away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets.segments.chunks import Chunk
from aframe_assets.segments.table import Row, make_roles, write_csv, write_segwizard

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.handle import Manifest

_RULES = ("ifos", "strain.source", "strain.min_dq", "segments.source", "segments.flags", "segments.max_duration")
_RULES_OF = {
    "train": ("segments.train_min_duration", "segments.min_valid_duration"),
    "test": ("segments.test_min_duration",),
}
"""Whoever changes one of these asks for other chunks; a window, a list or a server that has more asks for more of them."""


@dataclass(frozen=True)
class Table:
    """The chunks of a search, and what was decided of them before.

    Attributes:
        rows: those in use, by partition.
        plan: {"rows": {partition: {gps_start, gps_stop}}, "key", "sha256"} of the test chunks that slides were planned for; None where
            those are the test chunks of `rows`.
        retired: those taken out, by partition: their row, with `reason` and the date `since`.
        made_with: config values of its key.
    """

    rows: Mapping[str, Row]
    plan: Mapping[str, Any] | None = None
    retired: Mapping[str, Row] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest | None) -> Table:
        """That of a stored `segments`; empty without one, or with one that a check holds back."""
        meta = manifest.decided if manifest else None
        if meta is None or (manifest.blocked and "kept" not in meta):
            return cls({})
        kept = meta.get("kept", meta)
        return cls(kept["rows"], kept.get("plan"), kept.get("retired", {}), kept.get("made_with", manifest.parts.config))

    def holds(self, config: Config, window: str) -> bool:
        """Whether chunks of `window` would be cut by the same rules under `config`."""
        now = config.select(("ifos", "segments", "strain.source", "strain.min_dq"))
        return all(_value(now, path) == _value(self.made_with, path) for path in (*_RULES, *_RULES_OF[window]))

    def chunks(self, config: Config) -> list[Chunk]:
        """Those whose bounds and roles stay under `config`."""
        same = {window: self.holds(config, window) for window in _RULES_OF}
        return [Chunk(r["gps_start"], r["gps_stop"], r["role"]) for r in self.rows.values() if same[window_of(r["role"])]]

    def extended(self, config: Config, rows: Mapping[str, Row]) -> Table:
        """This table with `rows`, made under `config`, in place of its own; the plan of slides stays while a chunk of it does."""
        before, after = _searched(self.rows), _searched(rows)
        plan = (self.plan or (_plan(before) if before else None)) if self.holds(config, "test") else None
        if plan is None or not set(plan["rows"]) & set(after) or plan["sha256"] == make_roles(after)["test"]["sha256"]:
            plan = None
        return replace(self, rows=rows, plan=plan)

    def without(self, config: Config, partitions: Iterable[str], reason: str, since: str) -> Table:
        """This table with `partitions` retired.

        Raises:
            KeyError: a partition that is not in use.
        """
        gone = {p: dict(self.rows[p]) | {"reason": reason, "since": since} for p in partitions}
        left = self.extended(config, {p: r for p, r in self.rows.items() if p not in gone})
        return replace(left, retired={**self.retired, **gone})

    def restored(self, config: Config, partitions: Iterable[str]) -> Table:
        """This table with retired `partitions` in use again, as they were.

        Raises:
            KeyError: a partition that is not retired.
            ValueError: other chunks are where one of them was.
        """
        back = {p: {k: v for k, v in self.retired[p].items() if k not in ("reason", "since")} for p in partitions}
        for p, row in back.items():
            if other := [k for k, r in self.rows.items() if r["gps_start"] < row["gps_stop"] and r["gps_stop"] > row["gps_start"]]:
                raise ValueError(f"segment {p} cannot come back: {', '.join(other)} {'is' if len(other) == 1 else 'are'} there by now")
        rows = dict(sorted({**self.rows, **back}.items(), key=lambda item: item[1]["gps_start"]))
        return replace(self.extended(config, rows), retired={p: r for p, r in self.retired.items() if p not in back})

    def decided(self) -> dict[str, Any]:
        """What later tables go by."""
        out: dict[str, Any] = {"rows": dict(self.rows)}
        if self.plan:
            out["plan"] = dict(self.plan)
        if self.retired:
            out["retired"] = dict(self.retired)
        return out

    def meta(self) -> dict[str, Any]:
        """What the handle of `segments` keeps of it."""
        roles = make_roles(self.rows)
        livetimes = {f"{role}_livetime": r["livetime"] for role, r in roles.items()}
        return self.decided() | {"roles": roles, "num_segments": len(self.rows)} | livetimes

    def write(self, folder: Path) -> dict[str, Path]:
        """The files of `segments`, by name."""
        files = {name: folder / name for name in ("segments.csv", "segments.txt")}
        write_csv(self.rows, files["segments.csv"])
        write_segwizard(self.rows, files["segments.txt"])
        return files


def window_of(role: str) -> str:
    """The window, `train` or `test`, that a role's chunks are cut from."""
    return "test" if role == "test" else "train"


def planned_rows(meta: Mapping[str, Any]) -> dict[str, Row]:
    """The test chunks that slides and injections are planned for, by partition.

    Args:
        meta: of the handle of `segments`.
    """
    return dict(meta["plan"]["rows"]) if "plan" in meta else _searched(meta["rows"])


def plan_identity(meta: Mapping[str, Any]) -> dict[str, str]:
    """Identity {key, sha256} of `planned_rows`."""
    of = meta["plan"] if "plan" in meta else meta["roles"]["test"]
    return {"key": of["key"], "sha256": of["sha256"]}


def stretches(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """(start, stop) of `rows`, GPS seconds."""
    return [(r["gps_start"], r["gps_stop"]) for r in rows]


def _searched(rows: Mapping[str, Row]) -> dict[str, Row]:
    return {p: r for p, r in rows.items() if r["role"] == "test"}


def _plan(rows: Mapping[str, Row]) -> dict[str, Any]:
    identity = make_roles(rows)["test"]
    kept = {p: {k: r[k] for k in ("gps_start", "gps_stop", "role")} for p, r in rows.items()}
    return {"rows": kept, "key": identity["key"], "sha256": identity["sha256"]}


def _value(values: Mapping[str, Any], path: str) -> Any:
    """`path` in config values that are kept by section or by dotted path."""
    if path in values:
        return values[path]
    found: Any = values
    for word in path.split("."):
        found = found.get(word) if isinstance(found, Mapping) else None
    return found
