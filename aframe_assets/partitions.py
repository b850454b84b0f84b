"""The one partitions definition: a partition is a chunk of coincident science time."""

import dagster as dg

SEGMENTS = dg.DynamicPartitionsDefinition(name="segments")
