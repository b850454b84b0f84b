"""What a person sees while a run runs: a line per step with its time and what it made."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

_HIDDEN = {"uri", "nbytes", "made"}
_SHOWN = 4
"""Values of an artifact that fit on its line."""


def duration(seconds: float) -> str:
    """Seconds as ``0.4 s``, ``1 min 05 s`` or ``2 h 03 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(nbytes: float) -> str:
    """Bytes as ``312 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def step_label(key: str) -> str:
    """``background.make_background[c00002]`` as ``background (make 3)``; a step with a name keeps it."""
    asset, _, op = key.partition(".")
    if not op:
        return asset
    name, _, chunk = op.partition("[")
    verb = name.removesuffix(f"_{asset}")
    chunk = chunk.rstrip("]")
    digits = chunk.lstrip("c")
    return f"{asset} ({verb} {int(digits) + 1})" if digits.isdigit() else f"{asset} ({verb}{chunk and ' '}{chunk})"


@dataclass
class _Step:
    since: float
    waits: bool = True
    made: list[dict[str, Any]] = field(default_factory=list)
    checks: list[tuple[str, bool]] = field(default_factory=list)


class Progress:
    """Follows the events of a run.

    Args:
        console: where lines go.
    """

    def __init__(self, console: Console):
        self.console = console
        self.failed: dict[str, str] = {}
        self._steps: dict[str, _Step] = {}
        self._live = Live(
            get_renderable=self._running,
            console=console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _running(self) -> Group:
        rows = Table.grid(padding=(0, 1))
        for key, step in self._steps.items():
            word = "waits" if step.waits else duration(time.monotonic() - step.since)
            rows.add_row(Spinner("dots"), Text(f"{step_label(key):32}"), Text(word, style="dim"))
        return Group(rows)

    def handle(self, event: Any) -> None:
        """Takes note of one Dagster event."""
        from aframe_ops.executor.executor import failure_reason  # brings Dagster, which `status` does without

        kind, key = event.event_type_value, event.step_key
        if key is None:
            return
        if kind == "STEP_WORKER_STARTING":
            self._steps[key] = _Step(time.monotonic())
            return
        step = self._steps.setdefault(key, _Step(time.monotonic()))
        if kind in ("STEP_START", "STEP_RESTARTED"):
            step.since, step.waits = time.monotonic(), False
        elif kind == "ASSET_MATERIALIZATION":
            made = event.step_materialization_data.materialization
            step.made.append({"asset": made.asset_key.to_user_string(), "partition": made.partition, **_values(made.metadata)})
        elif kind == "ASSET_CHECK_EVALUATION":
            found = event.asset_check_evaluation_data
            step.checks.append((found.check_name, found.passed))
        elif kind == "STEP_UP_FOR_RETRY":
            self._line("↻", "yellow", key, step, f"again: {_reason(event)}")
            del self._steps[key]
        elif kind == "STEP_SUCCESS":
            step.since = time.monotonic() - event.step_success_data.duration_ms / 1000
            self._line("✓", "green", key, step, _summary(step))
            del self._steps[key]
        elif kind == "STEP_FAILURE":
            reason = failure_reason(event)
            self.failed[key] = reason
            self._line("✗", "red", key, step, reason)
            del self._steps[key]

    def _line(self, mark: str, style: str, key: str, step: _Step, text: str) -> None:
        elapsed = duration(time.monotonic() - step.since)
        self.console.print(Text.assemble((mark, style), f" {step_label(key):32} {elapsed:>11}  ", (text, "dim")), soft_wrap=True)


def _reason(event: Any) -> str:
    error = event.step_retry_data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip().splitlines()[-1] if error and error.message.strip() else "no reason was given"


def _values(metadata: Any) -> dict[str, Any]:
    return {k: v.value for k, v in metadata.items() if isinstance(getattr(v, "value", None), bool | int | float | str)}


def _summary(step: _Step) -> str:
    parts = []
    fresh = [m for m in step.made if m.get("made", True)]
    if len(step.made) > 1:
        parts.append(f"{len({m['partition'] for m in step.made})} segments, {size(sum(m.get('nbytes', 0) for m in step.made))}")
    elif step.made and not fresh:
        parts.append("was complete")
    elif step.made:
        made = step.made[0]
        parts.append(size(made.get("nbytes", 0)))
        if made["partition"]:
            parts.append(f"segment {made['partition']}")
        shown = {k: v for k, v in made.items() if k not in _HIDDEN | {"asset", "partition"} and not isinstance(v, str | bool)}
        parts += [f"{k} {_number(v)}" for k, v in list(shown.items())[:_SHOWN]]
    bad = [name for name, passed in step.checks if not passed]
    if bad:
        parts.append(f"checks failed: {', '.join(bad)}")
    return ", ".join(parts)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
