"""What a server says of itself: the Prometheus text of its metrics port, read and kept as a table."""

from __future__ import annotations

import csv
import re
import time
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})?\s+(?P<value>[-+]?[\d.]+(?:e[-+]?\d+)?)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Metric(NamedTuple):
    """One value. `labels` say of which model, version or GPU."""

    name: str
    labels: dict[str, str]
    value: float


def read(text: str) -> list[Metric]:
    """The values in Prometheus' text format; comments and lines that are no value are passed over."""
    out = []
    for line in text.splitlines():
        found = _LINE.match(line)
        if found:
            out.append(Metric(found["name"], dict(_LABEL.findall(found["labels"] or "")), float(found["value"])))
    return out


class Table:
    """Adds samples to a CSV of ``time,metric,model,version,gpu,value``; values that have not changed are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[tuple[str, ...], float] = {}
        with path.open("w", newline="") as f:
            csv.writer(f).writerow(["time", "metric", "model", "version", "gpu", "value"])

    def add(self, metrics: list[Metric], now: float | None = None) -> None:
        """Args: now: Unix time; None for the present."""
        now = time.time() if now is None else now
        rows = []
        for metric in metrics:
            key = (metric.name, metric.labels.get("model", ""), metric.labels.get("version", ""), metric.labels.get("gpu_uuid", ""))
            if self._last.get(key) != metric.value:
                self._last[key] = metric.value
                rows.append([f"{now:.3f}", *key, f"{metric.value:g}"])
        with self.path.open("a", newline="") as f:
            csv.writer(f).writerows(rows)
