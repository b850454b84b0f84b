"""The one partitions definition: a partition is a chunk of coincident science time."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

SEGMENTS = dg.DynamicPartitionsDefinition(name="segments")


def register(instance: dg.DagsterInstance, keys: Iterable[str]) -> None:
    """Makes the partitions of `instance` those of a segments table: new ones are added sorted, others are taken out.

    (A range over the stored order, as a backfill from the page makes them, would otherwise take in segments that no longer exist.)
    """
    wanted, have = set(keys), set(instance.get_dynamic_partitions(SEGMENTS.name))
    if wanted - have:
        instance.add_dynamic_partitions(SEGMENTS.name, sorted(wanted - have))
    for key in sorted(have - wanted):
        instance.delete_dynamic_partition(SEGMENTS.name, key)
