"""`aframe retry`: what failed, and nothing else, is made again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from aframe_assets.config_load import ConfigError
from aframe_assets.store.verifying import retire
from aframe_ops.run_directory import RunDirectory
from aframe_ops.survey import state_of, survey

if TYPE_CHECKING:
    from aframe_assets.store.workspace import Workspace

_FAILED = ("failed", "held back", "damaged")


def retry(
    run: RunDirectory, console: Console, assets: Sequence[str], segments: Sequence[str], *, again: bool = False, verbose: bool = False
) -> None:
    """Makes what failed, is held back by a check, or is damaged; upstream first, each asset in a run of its own.

    Args:
        assets: only these; all by default.
        segments: only these keys; all by default, and what has none.
        again: what is complete, too. It is taken out of use first; its readers stay complete if it comes out the same.

    Raises:
        ConfigError: no such asset or segment, or `again` without a choice of assets.
        RunFailed: it failed again.
    """
    from aframe_ops.cli.running import only_one, run_all

    workspace = run.workspace()
    todo = _chosen(workspace, assets, segments, again)
    if not todo:
        console.print("nothing has failed; `aframe run` makes what is missing or out of date")
        return
    if again:
        with only_one(run):
            for asset, partitions in todo.items():
                for partition in partitions:
                    retire(workspace.store, asset, partition, "to be made again, as asked for by `aframe retry --again`")
    tried: set[tuple[str, str | None]] = set()
    while todo:
        for asset, partitions in todo.items():
            keys = [p for p in partitions if p is not None]
            console.print(f"{asset}: {f'{len(keys)} segments' if keys else 'again'}")
            # what has failed had all its inputs; of them an asset may miss others, as a model those of the test data
            run_all(run, console, until=asset, alone=True, segments=[",".join(keys)] if keys else [], verbose=verbose)
            tried |= {(asset, p) for p in partitions}
        # what failed as well may have waited for these
        found = _chosen(run.workspace(), assets, segments, again=False)
        todo = {asset: left for asset, those in found.items() if (left := [p for p in those if (asset, p) not in tried])}


def _chosen(workspace: Workspace, assets: Collection[str], segments: Collection[str], again: bool) -> dict[str, list[str | None]]:
    """Partitions to make by asset, upstream first."""
    if unknown := sorted(set(assets) - set(workspace.graph)):
        raise ConfigError(f"--asset {unknown[0]}: no such asset; expected one of {', '.join(workspace.graph)}")
    if again and not assets:
        raise ConfigError("--again needs --asset: what is to be made again though it is complete")
    states = survey(workspace)
    keys = {p for s in states.values() for p in s.partitions if p is not None}
    if unknown := sorted(set(segments) - keys):
        raise ConfigError(f"--segment {unknown[0]}: no such segment; see `aframe segments list`")
    out: dict[str, list[str | None]] = {}
    for name, state in states.items():
        found = [
            p
            for p in state.partitions
            if (not assets or name in assets)
            and (not segments or p in segments)
            and (state_of(state.why.get(p)) in (("complete", *_FAILED) if again else _FAILED))
        ]
        if found:
            out[name] = found
    return out
