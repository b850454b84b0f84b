"""`aframe reap`: what dead runs have left behind."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from aframe_ops.cli.running import open_instance
from aframe_ops.run_directory import RunDirectory


def reap_directory(run: RunDirectory, console: Console, *, dry_run: bool = False) -> bool:
    """Marks dead runs failed, cancels batch jobs that no live run has or waits for, and prints what it did.

    Returns:
        False where something could not be looked up or cancelled; then it was left as it was.
    """
    from aframe_ops.leases_reaping import Unsure, reap_all

    run.activate()
    site = run.site()
    try:
        with open_instance(run) as instance:
            report = reap_all(instance, site, dry_run=dry_run)
    except Unsure as e:
        console.print(str(e), style="red", soft_wrap=True)
        return False
    except Exception as e:  # the database is opened before anything else is
        said = str(e).strip().splitlines() or [type(e).__name__]
        console.print(f"the event database cannot be opened ({said[0][:300]}); nothing was done", style="red", soft_wrap=True)
        return False
    for run_id in report.dead:
        console.print(f"run {run_id[:8]} had died; {'would be ' if dry_run else ''}marked failed")
    for run_id in report.left:
        console.print(f"run {run_id[:8]} had died; another run waits for a job of it")
    for run_id, words in report.alive.items():
        console.print(f"run {run_id[:8]} is alive: {words}", soft_wrap=True)
    if report.jobs:
        table = Table("job", "run", "step", "state", "outcome", box=None, pad_edge=False)
        for job in report.jobs:
            state = job.state.phase.value if job.state else "?"
            table.add_row(f"{job.backend} {job.id or job.name}", job.run[:8], job.step, state, job.outcome)
        console.print(table)
    for lease in report.foreign:
        console.print(f"left alone: {lease.backend} job {lease.job or lease.name} of {lease.user} in {lease.host}:{lease.directory}")
    if not report.dead and not report.left and not report.alive and not report.jobs:
        console.print("no run of this directory is active")
    return all(not job.outcome.startswith("left as it is") for job in report.jobs)
