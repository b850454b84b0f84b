"""Science time that a server has gained: the segments table is looked up again, so often. Off until it is switched on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import dagster as dg

from aframe_assets.tags import resources
from aframe_ops.site import SiteConfig

if TYPE_CHECKING:
    from aframe_assets.config import Config

SERVERS = ("gwosc", "dqsegdb")
"""Values of ``segments.source`` that may have more tomorrow without any file's changing."""

NAME = "look_up_segments"
_PATIENCE_S = 300
"""How soon it is tried again where something else runs."""


def look_up_job(config: Config, site: SiteConfig, tags: dict[str, str]) -> dg.JobDefinition:
    """`aframe segments sync` as a job: chunks and roles that there are stay."""

    @dg.op(name=NAME, out=dg.Out(dg.Nothing), tags=resources(cpus=1, memory_gb=2, time_min=60))
    def look_up(context) -> None:
        from aframe_ops.cli.running import only_one
        from aframe_ops.run_directory import RunDirectory
        from aframe_ops.segment_changes import sync

        run = RunDirectory(site.directory)
        with only_one(run):
            change = sync(run.workspace(config, site), context.instance)
        context.log.info(f"{len(change.added)} segments added: {', '.join(list(change.added)[:20]) or 'none'}")

    @dg.job(
        name=NAME,
        executor_def=dg.in_process_executor,
        tags=tags,
        description="Asks the segment server again; segments that there are stay as they are.",
    )
    def job():
        look_up()

    return job


def look_up_sensor(job: dg.JobDefinition, site: SiteConfig, status: dg.DefaultSensorStatus, busy) -> dg.SensorDefinition:
    """Starts `job` once in ``automation.look_up_hours``.

    Args:
        busy: says of an instance and a site what keeps runs waiting, or None.
    """
    every = 3600 * site.automation.look_up_hours

    @dg.sensor(
        name=NAME,
        job=job,
        minimum_interval_seconds=int(min(every, _PATIENCE_S)),
        default_status=status,
        description=f"Asks the segment server every {site.automation.look_up_hours:g} hours whether there is more science time.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        turn = str(int(time.time() // every))
        if context.cursor == turn:
            return dg.SkipReason(f"asked already; every {site.automation.look_up_hours:g} hours")
        waits = busy(context.instance, site)
        if waits:
            return dg.SkipReason(waits)
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=f"{NAME}:{turn}")], cursor=turn)

    return sensor
