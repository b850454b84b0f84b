"""`aframe reap` as a sensor; switched off until somebody switches it on in the UI."""

from __future__ import annotations

import dagster as dg

from aframe_ops.site import SiteConfig

INTERVAL_S = 300


def reap_sensor(site: SiteConfig) -> dg.SensorDefinition:
    """Marks dead runs failed and cancels batch jobs that no live run has or waits for, every five minutes."""

    @dg.sensor(
        name="reap_batch_jobs",
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Cancels batch jobs whose run is over and that no live run waits for, as `aframe reap` does.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        from aframe_ops.leases_reaping import Unsure, reap_all

        try:
            done = reap_all(context.instance, site)
        except Unsure as e:
            context.log.warning(str(e))
            return dg.SkipReason(str(e))
        for job in done.jobs:
            context.log.info(f"{job.backend} job {job.id} ({job.step} of run {job.run}): {job.outcome}")
        cancelled = sum(job.outcome == "cancelled" for job in done.jobs)
        return dg.SkipReason(f"{len(done.dead)} dead runs marked failed, {cancelled} of {len(done.jobs)} jobs cancelled")

    return sensor
