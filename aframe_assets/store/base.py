"""The store of artifacts: what is the same on local disk and S3.

Layout, below the store's root::

    {asset}/{partition or _}/{key[:16]}-{sha256[:8]}/NAME     one version
    {asset}/{partition or _}.json                             its manifest, written last
    {asset}/_index.json                                       all manifests of the asset, rebuilt when stale
    _values/NAME.json                                         small values between the steps of a run
    _leases/{key}.json                                        which batch job is making that (see `leases`)

A version's folder is named after its key *and* its content. So whoever writes into an existing folder (a re-run, a
racing worker, the next try after a kill) writes the same bytes again, and a reader of another version is never disturbed.
A manifest is only ever exchanged for one that its writer has seen, so of many writers of one key exactly one counts.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aframe_assets.store import index
from aframe_assets.store.errors import ArtifactGone, StoreError, redact
from aframe_assets.store.files import collect, remove_dead, sealed_entry, stamp
from aframe_assets.store.handle import Handle, KeyParts, Manifest, check_name, check_word, content_sha256, plain
from aframe_assets.store.layout import Stat, folder_of
from aframe_assets.store.storage import Storage

log = logging.getLogger(__name__)

ORPHAN_S = 3600.0
"""Version folders that no manifest names may belong to a publish in progress: they are left alone for this long."""
_PARALLEL = 16
_EXCHANGES = 100
"""Each time that an exchange fails, another writer's has succeeded."""


class ArtifactStore(Storage):
    """Artifacts by (asset, partition), published atomically. Safe for many processes and hosts at once."""

    # -- private folders -----------------------------------------------------------------------------------------------

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private local folder, removed afterwards; on a local store it is on the store's filesystem, or on the node's.

        Folders that killed processes of this host left behind are swept.
        """
        base = self.node.scratch if self.node else self.local / "scratch"
        base.mkdir(parents=True, exist_ok=True)
        remove_dead(base)
        path = base / stamp()
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def workdir(self, parts: KeyParts) -> Path:
        """A local folder of this key that survives a kill (checkpoints); dropped once the key is published."""
        path = self._workdir(parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _workdir(self, parts: KeyParts) -> Path:
        return self.local / "work" / folder_of(parts.asset, parts.partition) / parts.key[:16]

    # -- writing -------------------------------------------------------------------------------------------------------

    def publish(
        self,
        parts: KeyParts,
        files: Path | Mapping[str, Path],
        meta: Mapping[str, Any] | None = None,
        checks: Sequence[Mapping[str, Any]] = (),
        provenance: Mapping[str, Any] | None = None,
        keep: bool = True,
    ) -> Handle:
        """Make `files` the artifact of `parts`: hash, place, manifest last.

        Of several writers of one key the first counts: the others are given its handle, and nothing refers to their files.

        Args:
            parts: what the artifact's key is made of.
            files: a folder, whose whole tree is published, or files by name. They are left where they are, but a
                local store may share their bytes (hard links): do not write to them afterwards.
            meta: small values kept in the handle.
            checks: outcomes; dicts with name, passed, severity, blocking.
            provenance: how it was made; created and host are filled in.
            keep: False replaces a whole artifact of the same key.

        Raises:
            StoreError: disk full, storage unreachable; nothing was published.
            ValueError: nothing to publish, or a name that cannot be stored.
        """
        where = folder_of(parts.asset, parts.partition)
        tree = collect(files, self._label(parts))
        meta, kept = plain(dict(meta or {}), "meta"), [plain(dict(c), "checks") for c in checks]
        entries = [sealed_entry(name, path, self._flushes) for name, path in sorted(tree.items())]
        sha256 = content_sha256(entries)
        folder = f"{where}/{parts.key[:16]}-{sha256[:8]}"
        before = self._manifest(where)
        for _ in range(3):
            placed = self._place(folder, tree, entries)
            handle = Handle(
                asset=parts.asset,
                partition=parts.partition,
                key=parts.key,
                uri=self.uri(folder),
                files=tuple(placed),
                sha256=sha256,
                meta=meta,
            )
            manifest = Manifest(handle=handle, parts=parts, status="ok", checks=kept, provenance=self._provenance(provenance))
            settled = self._settle(where, manifest, keep)
            if settled.handle is not None and settled is not manifest:
                log.info("another writer of %s was first; what it published counts", self._label(parts))
                return settled.handle
            # another worker's pruning may have met this very folder: look once more, now that the manifest protects it
            if not self._damage(handle):
                break
        else:
            raise StoreError(
                f"{self._label(parts)}: files in {handle.uri} vanish or change while being published; is another job writing it?"
            )
        shutil.rmtree(self._workdir(parts), ignore_errors=True)
        with suppress(StoreError, OSError):  # leftovers cost space, not correctness
            self._prune(where, handle, before)
        return handle

    def record_failure(self, parts: KeyParts, error: str) -> None:
        """Keep the text of a failure as the manifest of (asset, partition).

        A good artifact of the same key (another worker was luckier) stays.
        """
        if self.complete(parts) is not None:
            return
        error = redact(error, self._secrets())
        before = self.manifest(parts.asset, parts.partition)
        left = before.left if before else None
        manifest = Manifest(parts=parts, status="failed", error=error, left=left, provenance=self._provenance(None))
        self._settle(folder_of(parts.asset, parts.partition), manifest, keep=True)

    def forget(self, asset: str, partition: str | None = None) -> None:
        """Makes (asset, partition) count as never made. Its bytes stay until something of the same name is published."""
        self._remove(f"{folder_of(asset, partition)}.json")

    def _settle(self, where: str, manifest: Manifest, keep: bool) -> Manifest:
        """Makes `manifest` the current one unless (`keep`) a whole artifact of its key is there; returns which one counts."""
        path, data = f"{where}.json", manifest.dumps().encode()
        for _ in range(_EXCHANGES):
            now = self._marked(path)
            if now.data == data:  # written by a request that was repeated because its answer was lost
                return manifest
            found = None if now.data is None else self._parse(now.data, path)
            if keep and self._wanted(found, manifest.parts) and not self._damage(found.handle):
                return found
            if self._exchange(path, data, now.mark):
                return manifest
        raise StoreError(f"{self.uri(path)} is being changed all the time by other jobs; run the same command again")

    def _provenance(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        filled = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "host": socket.gethostname(), **(given or {})}
        return redact(plain(filled, "provenance"), self._secrets())

    def _prune(self, where: str, current: Handle, before: Manifest | None) -> None:
        """Remove the version that `current` replaced, and orphans old enough to belong to nobody.

        A replaced version of the same key stays for a while: a racing worker has just handed it on.
        """
        keep = current.uri.rsplit("/", 1)[1]
        replaced = before.handle.uri.rsplit("/", 1)[1] if before and before.handle and before.handle.key != current.key else None
        for name, age in self._versions(where).items():
            if name != keep and (name == replaced or age > ORPHAN_S):
                now = self._manifest(where)
                if now is None or now.handle is None or not now.handle.uri.endswith(f"/{name}"):
                    self._remove(f"{where}/{name}")

    # -- reading -------------------------------------------------------------------------------------------------------

    def manifest(self, asset: str, partition: str | None = None) -> Manifest | None:
        """The current record of (asset, partition); None if there is none, or none that can be read."""
        return self._manifest(folder_of(asset, partition))

    def _manifest(self, where: str) -> Manifest | None:
        data = self._read(f"{where}.json")
        return None if data is None else self._parse(data, f"{where}.json")

    def _parse(self, data: bytes | Mapping[str, Any] | None, path: str) -> Manifest | None:
        found = index.plain_manifest(data) if isinstance(data, bytes) else data
        try:
            handle = (found or {}).get("handle")
            if handle:
                # the store may have been moved or mounted elsewhere since: the folder is where the manifest is
                where, version = path.removesuffix(".json"), handle["uri"].rsplit("/", 1)[-1]
                found = {**found, "handle": {**handle, "uri": self.uri(f"{where}/{version}")}}
            return Manifest.model_validate(found)
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s is not a manifest; the artifact counts as missing", self.uri(path))
            return None

    def assets(self) -> list[str]:
        """Names of all assets of which there is anything, sorted."""
        return sorted(name for name in self._folders() if not name.startswith(("_", ".")))

    def manifests(self, asset: str, afresh: bool = False) -> dict[str | None, Manifest]:
        """The records of all partitions, sorted (None is the key of an unpartitioned artifact).

        One listing and one read of the index; records that the index does not know, or knows in an older form, are
        read one by one and the index is rewritten.

        Args:
            afresh: read all of them one by one.
        """
        check_word(asset, "asset name")
        listed = {e.name: e.stamp for e in self._list(asset) if e.name.endswith(".json") and e.name != index.NAME}
        address = f"{asset}/{index.NAME}"
        known = {} if afresh else index.loads(self._read(address), self.uri(address))
        stale = [name for name, mark in listed.items() if name not in known or known[name].stamp != mark]
        fresh = not stale and known.keys() == listed.keys()
        if stale:
            with ThreadPoolExecutor(min(_PARALLEL, len(stale))) as pool:
                for name, data in zip(stale, pool.map(lambda name: self._read(f"{asset}/{name}"), stale), strict=True):
                    known[name] = index.Entry(listed[name], index.plain_manifest(data))
        if not fresh:
            with suppress(StoreError, OSError):  # a reader without write access still reads
                self._write(address, index.dumps({name: known[name] for name in sorted(listed)}))
        out: dict[str | None, Manifest] = {}
        for name in sorted(listed):
            found = self._parse(known.pop(name).manifest, f"{asset}/{name}")
            if found is not None:
                stem = name.removesuffix(".json")
                out[None if stem == "_" else stem] = found
        return out

    def complete(self, parts: KeyParts) -> Handle | None:
        """The artifact of exactly this key, if it is whole and no blocking check of it failed (DESIGN, decision 1)."""
        found = self.manifest(parts.asset, parts.partition)
        return found.handle if self._wanted(found, parts) and not self._damage(found.handle) else None

    def complete_many(self, wanted: Iterable[KeyParts], known: Mapping[str | None, Manifest] | None = None) -> dict[str | None, Handle]:
        """`complete` for many partitions of one asset: one index and one listing instead of a request for each file.

        Partitions that are not complete are left out.

        Args:
            wanted: key parts.
            known: the manifests, where they have just been read.
        """
        wanted = list(wanted)
        out: dict[str | None, Handle] = {}
        for asset in {p.asset for p in wanted}:
            records = self.manifests(asset) if known is None else known
            sizes = self._stats(asset)
            for parts in (p for p in wanted if p.asset == asset):
                found = records.get(parts.partition)
                if self._wanted(found, parts) and not self._damage(found.handle, sizes):
                    out[parts.partition] = found.handle
        return out

    def survey(self, asset: str, partitions: Sequence[str | None]) -> tuple[dict[str | None, Handle], dict[str | None, str]]:
        """Which artifacts of `asset` a reader may use now, whatever their keys; and, of the others, why not."""
        many = len(partitions) > _PARALLEL
        records = self.manifests(asset) if many else {p: self.manifest(asset, p) for p in partitions}
        sizes = self._stats(asset) if many else None
        good: dict[str | None, Handle] = {}
        bad: dict[str | None, str] = {}
        for partition in partitions:
            found = records.get(partition)
            if found is None:
                bad[partition] = "was never made"
            elif found.status != "ok" or found.handle is None:
                bad[partition] = f"failed: {found.error}"
            elif found.blocked:
                bad[partition] = f"is held back by its check {', '.join(found.blocked)}"
            elif damage := self._damage(found.handle, sizes):
                bad[partition] = f"is damaged: {damage[0]}"
            else:
                good[partition] = found.handle
        return good, bad

    @staticmethod
    def _wanted(found: Manifest | None, parts: KeyParts) -> bool:
        return (
            found is not None and found.status == "ok" and found.handle is not None and found.handle.key == parts.key and not found.blocked
        )

    def _folder(self, handle: Handle) -> str:
        return f"{folder_of(handle.asset, handle.partition)}/{check_word(handle.uri.rsplit('/', 1)[-1], 'version')}"

    def _damage(self, handle: Handle, sizes: Mapping[str, Stat] | None = None) -> list[str]:
        """Files that are absent or not as recorded, in words."""
        folder, out = self._folder(handle), []
        for entry in handle.files:
            path = f"{folder}/{entry.name}"
            found = self._stat(path) if sizes is None else sizes.get(path)
            if found is None:
                out.append(f"{self.uri(path)} is missing")
            elif found.nbytes != entry.nbytes:
                out.append(f"{self.uri(path)} has {found.nbytes} bytes, expected {entry.nbytes}")
            elif entry.etag and found.etag and found.etag != entry.etag:
                out.append(f"{self.uri(path)} was replaced (ETag {found.etag}, expected {entry.etag})")
        return out

    def verify(self, handle: Handle) -> list[str]:
        """What is wrong with the stored bytes, in words; every file is read and hashed."""
        bad = self._damage(handle)
        if bad:
            return bad
        folder = self._folder(handle)
        return [
            f"{self.uri(f'{folder}/{e.name}')} has another sha256 than recorded"
            for e in handle.files
            if self._sha256(f"{folder}/{e.name}") != e.sha256
        ]

    def missing(self, handle: Handle, damage: Sequence[str]) -> ArtifactGone:
        """The error of a reader that finds `damage`."""
        more = f" (and {len(damage) - 3} more)" if len(damage) > 3 else ""
        return ArtifactGone(
            f"{handle.label}: {'; '.join(damage[:3])}{more}. It was removed or replaced after it was made; "
            f"make it again: aframe run --until {handle.asset}"
        )

    # -- small values --------------------------------------------------------------------------------------------------

    def put_value(self, name: str, value: Any) -> None:
        """Keep a small JSON value; `name` may hold '/'."""
        self._write(f"_values/{check_name(name)}.json", json.dumps(plain(value, name)).encode())

    def get_value(self, name: str) -> Any:
        """The value of `name`.

        Raises:
            ArtifactGone: there is none.
        """
        data = self._read(f"_values/{check_name(name)}.json")
        if data is None:
            raise ArtifactGone(f"no value {name!r} in {self.url}; the step that writes it has not run, or ran with another store")
        return json.loads(data)

    def drop_values(self, prefix: str) -> None:
        """Forget the values below the folder `prefix` (those of a finished run)."""
        self._remove(f"_values/{check_name(prefix)}")

    @staticmethod
    def _label(parts: KeyParts) -> str:
        return parts.asset if parts.partition is None else f"{parts.asset}[{parts.partition}]"
