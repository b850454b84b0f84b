"""Files that are dropped in watched places: which are whole, which are good, and when they go into the experiment.

Everything is on disk, in the folder ``automation`` of the run directory and in the folder that good files are put in, so that a kill
at any point costs nothing: what was begun is done again, what was found is not.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from filelock import FileLock, Timeout

from aframe_assets.config_load import ConfigError
from aframe_assets.strain.intake import Finding, Span, overlap
from aframe_ops.automation.ledger import Entry, Ledger, printable
from aframe_ops.automation.places import Drop, PlaceError, content, drops, take
from aframe_ops.run_directory import RUN_LOCK

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_ops.site import SiteConfig

BUDGET_S = 20.0
"""Seconds that one look may read files; the others are read at the next. Dagster ends a sensor's evaluation after 60."""

LONGEST = 240
"""Bytes of a file's name; disks allow 255, and where two files have one name, one of them is given a longer one."""

FOLDER = "automation"


def stamp(now: float) -> str:
    """Seconds since 1970 as ISO 8601."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")


def landing(land: Path) -> bool:
    """Whether a batch of files was being put into this folder, and is not in as a whole."""
    return (land / ".ready" / ".landing").exists()


class Reads(Protocol):
    """What reads new files: `aframe_ops.automation.inspector.Inspector`."""

    def inspect(self, path: Path) -> Finding: ...

    def held(self, paths: Iterable[str]) -> list[tuple[Span, str]]: ...


@dataclass
class Look:
    """What one look found.

    Attributes:
        new: entries that it added to the ledger.
        landed: names of files that it put into the experiment.
        settling: files that may still be written to, or were not reached in time.
        ready: good files that wait for more.
        troubles: places and files that could not be read this time.
        waits: what `ready` waits for, unless it is for more files.
    """

    new: list[Entry] = field(default_factory=list)
    landed: list[str] = field(default_factory=list)
    settling: int = 0
    ready: int = 0
    troubles: list[str] = field(default_factory=list)
    waits: str = ""

    def __str__(self) -> str:
        count = {v: sum(e.verdict == v for e in self.new) for v in ("good", "duplicate", "unused", "bad")}
        words = [f"{n} {v}" for v, n in count.items() if n]
        words += [f"{len(self.landed)} put into the experiment"] if self.landed else []
        words += [f"{self.ready} good ones wait {f'since {self.waits}' if self.waits else 'for more'}"] if self.ready else []
        words += [f"{self.settling} may still be written to"] if self.settling else []
        return printable(", ".join(words or ["no new files"]) + "".join(f"; {t}" for t in self.troubles))


class Incoming:
    """The watched places of a run directory.

    Raises:
        ConfigError: ``strain.files`` does not name the folder that good files are put in.
    """

    def __init__(self, config: Config, site: SiteConfig):
        self.config, self.options = config, site.automation
        self.folder = site.directory / FOLDER
        self.land = (site.directory / os.path.expanduser(self.options.land)).resolve()
        self.ledger = Ledger(self.folder / "files.jsonl")
        self._run_lock = site.directory / RUN_LOCK
        self.places = [p if "://" in p else str((site.directory / os.path.expanduser(p)).resolve()) for p in self.options.watch]
        self._checking, self._ready = self.land / ".checking", self.land / ".ready"
        if self.places and self.land not in [Path(p).resolve() for p in config.strain.files]:
            raise ConfigError(
                f"automation.land: {self.options.land}: expected a folder that strain.files of aframe.yaml names, "
                f"as `strain: {{source: files, files: [{self.options.land}]}}`; it has {config.strain.files}"
            )
        for place in self.places:
            if "://" not in place and (Path(place) in (self.land, *self.land.parents) or self.land in Path(place).parents):
                raise ConfigError(f"automation.watch: {place}: overlaps the folder that good files are put in, {self.land}")

    @property
    def lock(self) -> FileLock:
        """Held while files are moved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    @property
    def landing(self) -> bool:
        """Whether some files of a batch are in the experiment already, and some are not yet."""
        return landing(self.land)

    def whereabouts(self, entry: Entry) -> str:
        """'searched', 'waiting' or 'gone' for a good file, else its verdict."""
        if entry.verdict != "good":
            return entry.verdict
        return "waiting" if (self._ready / entry.name).exists() else "searched" if (self.land / entry.name).exists() else "gone"

    def look(self, reader: Reads, *, waits: str = "", now: float | None = None, budget_s: float = BUDGET_S) -> Look:
        """Lists the places, reads what is new and whole, and puts a quiet batch of good files into the experiment.

        Args:
            reader: says what a file is worth.
            waits: what reads the experiment's files now; good ones are kept waiting for its end.
            now: seconds since 1970.
            budget_s: seconds for reading.

        Raises:
            filelock.Timeout: another process looks.
        """
        now = time.time() if now is None else now
        with self.lock.acquire(timeout=0):
            out = Look(waits=waits)
            entries = self.ledger.read()
            self._tidy(entries)
            settled, first_seen = self._settled(entries, now, out)
            self._read(settled, entries, reader, out, now, time.monotonic() + budget_s)
            known = {e.identity for e in entries}
            pending = {f: s for f, s in first_seen.items() if (f, *s[:2]) not in known}
            self._save_pending(pending)
            try:
                if not waits:
                    with FileLock(self._run_lock).acquire(timeout=0):
                        self._put(entries, now, max((s[2] for s in pending.values()), default=0.0), out)
            except Timeout:
                out.waits = "`aframe run`, or a command like it, is at work here"
            out.ready = len(self._waiting(entries))
            return out

    def _tidy(self, entries: Sequence[Entry]) -> None:
        # a good file is moved here before it is written down: what is not written down will be read again
        known = {e.name for e in entries if e.verdict == "good"}
        for folder in (self._checking, self._ready):
            folder.mkdir(parents=True, exist_ok=True)
        for path in [*self._checking.iterdir(), *(p for p in self._ready.iterdir() if p.name not in known and p.name != ".landing")]:
            path.unlink()

    def _settled(self, entries: Sequence[Entry], now: float, out: Look) -> tuple[list[Drop], dict[str, tuple[int, str, float]]]:
        """Files that have not changed for long enough; and of all new ones size, stamp and since when they are so."""
        known, before = {e.identity for e in entries}, self._pending()
        seen: dict[str, tuple[int, str, float]] = {}
        settled = []
        for place in self.places:
            try:
                for drop in drops(place):
                    if drop[:3] in known or drop.file in seen:
                        continue
                    was = before.get(drop.file)
                    # a clock that was set back would have it wait for the time that there was before
                    since = min(was[2], now) if was and was[:2] == drop[1:3] else now
                    seen[drop.file] = (drop.size, drop.stamp, since)
                    if drop.whole or now - since >= self.options.settle_seconds:
                        settled.append(drop)
                    else:
                        out.settling += 1
            except PlaceError as e:
                out.troubles.append(str(e))
        return settled, seen

    def _read(self, settled: Sequence[Drop], entries: list[Entry], reader: Reads, out: Look, now: float, deadline: float) -> None:
        if not settled:
            return
        here = [e for e in entries if e.verdict == "good" and self.whereabouts(e) != "gone"]
        names = {e.name for e in here}
        # put there by hand, or when there was another ledger
        strangers = [p for p in sorted(self.land.iterdir()) if p.is_file() and p.name not in names]
        others = [p for p in self.config.strain.files if Path(p).resolve() != self.land]
        held = [(s, e.name) for e in here for s in e.spans] + reader.held([*others, *map(str, strangers)])
        hashes = {e.sha256: e.file for e in here}
        sizes = {p.stat().st_size for p in strangers}
        for number, drop in enumerate(settled):
            if time.monotonic() > deadline:
                out.settling += len(settled) - number
                return
            if drop.size in sizes:
                hashes |= {content(p): str(p) for p in strangers if p.stat().st_size == drop.size}
                sizes.discard(drop.size)
            try:
                entry = self._entry(drop, reader, held, hashes)
            except PlaceError as e:
                out.troubles.append(str(e))
                continue
            except OSError as e:
                out.troubles.append(f"{self.land}: {drop.file} cannot be copied there: {e.strerror or e}")
                return
            entry = replace(entry, why=printable(entry.why), time=stamp(now))
            self.ledger.append(entry)
            entries.append(entry)
            out.new.append(entry)
            if entry.verdict == "good":
                held += [(s, entry.name) for s in entry.spans]
                hashes[entry.sha256] = entry.file

    def _entry(self, drop: Drop, reader: Reads, held: Sequence[tuple[Span, str]], hashes: dict[str, str]) -> Entry:
        # it is read under its own name, which may say when it begins; what is read is what is searched
        own = Path(drop.file).name
        if not own.isprintable() or len(os.fsencode(own)) > LONGEST:
            return Entry(*drop[:3], "bad", f"{drop.file}: expected a name of at most {LONGEST} bytes that can be printed")
        copy = self._checking / own
        copy.unlink(missing_ok=True)
        sha256 = take(drop, copy, link=self.options.take == "link")
        try:
            if sha256 in hashes:
                return Entry(*drop[:3], "duplicate", f"the same bytes as {hashes[sha256]}", sha256)
            found = reader.inspect(copy)
            why = found.why.replace(str(copy), drop.file)
            taken = overlap(found.spans, held) if found.verdict == "good" else None
            if taken:
                return Entry(*drop[:3], "bad", f"{drop.file}: {taken}", sha256, spans=found.spans)
            if found.verdict != "good":
                return Entry(*drop[:3], found.verdict, why, sha256, spans=found.spans)
            name = copy.name
            if (self.land / name).exists() or (self._ready / name).exists():
                name = f"{sha256[:8]}-{name}"
            os.replace(copy, self._ready / name)
            return Entry(*drop[:3], "good", "", sha256, name, found.spans, found.science)
        finally:
            copy.unlink(missing_ok=True)

    def _waiting(self, entries: Sequence[Entry]) -> list[Entry]:
        return [e for e in entries if e.verdict == "good" and (self._ready / e.name).exists()]

    def _put(self, entries: Sequence[Entry], now: float, newest: float, out: Look) -> None:
        waiting = self._waiting(entries)
        if not waiting:
            with suppress(FileNotFoundError):
                (self._ready / ".landing").unlink()
            return
        since = [datetime.fromisoformat(e.time).timestamp() for e in waiting]
        if max(since) > now:  # a clock was set back: nobody knows how long they have waited
            since = [-math.inf]
        quiet = now - max(newest, *since) >= self.options.quiet_seconds
        if not (quiet or now - min(since) >= self.options.max_wait_seconds or self.landing):
            return
        (self._ready / ".landing").touch()
        for entry in waiting:
            there = self.land / entry.name
            if there.exists() and content(there) != entry.sha256:  # since it was judged
                out.troubles.append(f"{there}: somebody has put it there; {entry.file} waits until it is gone")
                continue
            os.replace(self._ready / entry.name, there)
            out.landed.append(entry.name)
        (self._ready / ".landing").unlink()

    def _pending(self) -> dict[str, tuple[int, str, float]]:
        try:
            return {f: (s[0], s[1], s[2]) for f, s in json.loads((self.folder / "pending.json").read_text()).items()}
        except (FileNotFoundError, ValueError):
            return {}

    def _save_pending(self, pending: dict[str, tuple[int, str, float]]) -> None:
        path = self.folder / "pending.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(pending))
        os.replace(temporary, path)
