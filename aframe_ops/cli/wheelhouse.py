"""`aframe wheelhouse`: wheels for nodes without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from aframe_ops.containers.target import Target
from aframe_ops.containers.wheelhouse import Summary, build


def make_wheelhouse(
    folder: Path,
    console: Console,
    *,
    python: str | None,
    platform: str | None,
    extras: Sequence[str],
    only: Sequence[str],
    torch: str,
) -> None:
    """Makes or completes the wheelhouse, and says what is in it."""
    here = Target.here()
    target = Target(python or here.python, platform or here.platform)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    found = build(folder, target, extras=extras, only=only, torch=torch, tell=say)
    for line in summary(found):
        say(line)
    say(f"next, in site.yaml: slurm: {{wheelhouse: {folder.absolute()}, node_disk: $SLURM_TMPDIR}}")


def summary(found: Summary) -> list[str]:
    """What is in a wheelhouse now, in lines for the user."""
    size, new = sum(w.nbytes for w in found.wheels), sum(w.nbytes for w in found.new)
    largest = sorted(found.wheels, key=lambda w: -w.nbytes)[:5]
    lines = [
        f"{len(found.wheels)} wheels, {_size(size)}, for Python {found.target.python} on {found.target.platform}; "
        f"{len(found.new)} of them new ({_size(new)})",
        f"largest: {', '.join(f'{w.name} {_size(w.nbytes)}' for w in largest)}",
        f"installed on a node: {_size(sum(w.unpacked for w in found.wheels))}",
    ]
    if found.unused:
        lines.append(f"no longer needed, once no job installs from an earlier version: {', '.join(found.unused)}")
    return lines


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
