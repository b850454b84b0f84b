"""Leases: which batch job is making an artifact, written down where every host and user of the store sees it.

A lease is a hint and never a lock on the artifact: publishing alone decides who counts. A lease that is lost costs work
that is done twice, one that is left over costs a question to a batch system.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from aframe_assets.store.base import ArtifactStore

FOLDER = "_leases"


class Lease(BaseModel):
    """Who makes one artifact.

    Attributes:
        backend: batch system.
        place: which of that kind, as `Scheduler.place`; empty where it is not known.
        name: the job's own name, which no other attempt of any run has.
        job: its id there; None while it is being submitted.
        submitted_as: the name under which the batch system knows it, that of its array if it is in one; None as `job`.
        run, step, attempt: whose job it is; attempts count from 0.
        host, user, directory: where its run was started, by whom, in which run directory.
        when: when the lease was taken (ISO 8601, UTC).
        time_min: the job's time limit, minutes; 0 where it is not known.
        asset, partition: the artifact, for a reader of the file.
        waiters: ids of runs that wait for it -> when they last said so (ISO 8601, UTC).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    backend: str
    place: str = ""
    name: str
    job: str | None = None
    submitted_as: str | None = None
    run: str
    step: str
    attempt: int
    host: str
    user: str
    directory: str
    when: str
    time_min: int = 0
    asset: str
    partition: str | None = None
    waiters: dict[str, str] = {}


class Found(NamedTuple):
    """What is stored under a key: None for nothing, or nothing that can be read; and its mark for an exchange."""

    lease: Lease | None
    mark: str | None


class Leases:
    """The leases of a store, by completeness key."""

    def __init__(self, store: ArtifactStore):
        self.store = store

    def address(self, key: str) -> str:
        """Where a lease is, for messages."""
        return self.store.uri(self._path(key))

    def get(self, key: str) -> Found:
        """The lease of `key`. Raises StoreError."""
        data, mark = self.store._marked(self._path(key))
        if data is None:
            return Found(None, None)
        try:
            return Found(Lease.model_validate_json(data), mark)
        except ValueError:  # cut off by a crash of its host; it may be replaced
            return Found(None, mark)

    def stamps(self) -> dict[str, str]:
        """The keys that there are leases of, each with what changes when its lease does; one listing."""
        return {e.name.removesuffix(".json"): e.stamp for e in self.store._list(FOLDER) if e.name.endswith(".json")}

    def put(self, key: str, lease: Lease, mark: str | None) -> bool:
        """Writes `lease` unless another has been written since the one with `mark` was read; whether it was written."""
        return self.store._exchange(self._path(key), lease.model_dump_json(indent=1).encode(), mark)

    def drop(self, key: str, name: str) -> None:
        """Removes the lease if it is still that of the job with this name."""
        found = self.get(key).lease
        if found is not None and found.name == name:
            self.store._remove(self._path(key))

    def all(self) -> dict[str, Lease]:
        """Every lease that can be read."""
        found = {key: self.get(key).lease for key in sorted(self.stamps())}
        return {key: lease for key, lease in found.items() if lease is not None}

    @staticmethod
    def _path(key: str) -> str:
        if not (len(key) == 64 and key.isalnum()):
            raise ValueError(f"{key!r} is not a completeness key (64 hexadecimal digits)")
        return f"{FOLDER}/{key}.json"
