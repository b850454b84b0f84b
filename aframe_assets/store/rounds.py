"""An asset made in fixed rounds: propose, make all proposals in parallel, look at what came out, propose again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from aframe_assets import lineage
from aframe_assets.config import Config
from aframe_assets.store.bodies import GLUE, making_room, metadata_of, produce, wanted_or_refuse
from aframe_assets.store.fanout import check_of_whole, graph_asset
from aframe_assets.store.job import Job, Product
from aframe_assets.store.work import makes, trial_parts
from aframe_assets.store.workspace import Wanted
from aframe_assets.tags import resources

Record = dict[str, Any]
"""What is known of one trial: its `round`, `index`, `params` and, once made, the `meta` of its artifact."""


def rounds_asset(
    name: str,
    ask: Callable[[Config, Sequence[Record], int], Sequence[Mapping[str, Any]]],
    make_trial: Callable[[Job, Mapping[str, Any]], Product],
    finish: Callable[[Job, Sequence[Record]], Product],
    config: Config,
    *,
    num_rounds: int,
    description: str,
    tags: Mapping[str, str],
    kinds: set[str],
    checks: Sequence[tuple[str, bool]] = (),
) -> list[Any]:
    """An unpartitioned asset found in `num_rounds` rounds of trials, each trial a step of its own.

    A trial is an artifact (``{name}_trial``), so a killed run repeats only what was in flight; `ask` must give the same
    proposals for the same records.

    Args:
        ask: (config, records of earlier rounds, round) -> parameters of this round's trials.
        make_trial: (job, parameters) -> product; its meta becomes part of the record.
        finish: (job, all records) -> the asset's product.
        checks: (name, blocking) of each check that `finish` reports.
    """
    blocking = dict(checks)
    glue, upstream = resources(**GLUE), lineage.deps(lineage.graph(config)[name])
    needs = {"required_resource_keys": {"experiment"}}

    def open_wanted(context):
        workspace = context.resources.experiment.workspace()
        wanted = wanted_or_refuse(workspace, name)
        return workspace, wanted, workspace.store.complete(wanted.parts)

    @dg.op(name=f"start_{name}", ins={d: dg.In(dg.Nothing) for d in upstream}, out=dg.Out(list), tags=glue, **needs)
    def start(context):
        return []

    def asking(number: int):
        @dg.op(name=f"ask_{name}_{number:02d}", ins={"records": dg.In(list)}, out=dg.DynamicOut(dict), tags=glue, **needs)
        def op(context, records):
            workspace, _, done = open_wanted(context)
            if done is None:
                for i, params in enumerate(ask(workspace.config, records, number)):
                    yield dg.DynamicOutput({"round": number, "index": i, "params": dict(params)}, mapping_key=f"t{i:03d}")

        return op

    def trying(number: int):
        @dg.op(
            name=f"try_{name}_{number:02d}",
            ins={"record": dg.In(dict)},
            out=dg.Out(dict),
            tags={**tags, **makes(name, "trial")},
            retry_policy=dg.RetryPolicy(max_retries=config.execution.max_retries, delay=1),
            **needs,
        )
        def op(context, record):
            workspace, wanted, _ = open_wanted(context)
            part = Wanted(trial_parts(wanted.parts, record), wanted.inputs, wanted.row)
            handle = workspace.store.complete(part.parts)
            if handle is None:
                with making_room(config):
                    handle, _ = produce(workspace, part, lambda job: make_trial(job, record["params"]), {}, context.run_id, context.log)
            return {**record, "meta": dict(handle.meta)}

        return op

    def telling(number: int):
        @dg.op(name=f"tell_{name}_{number:02d}", ins={"records": dg.In(list), "made": dg.In(list)}, out=dg.Out(list), tags=glue, **needs)
        def op(context, records, made):
            return [*records, *sorted(made, key=lambda r: r["index"])]

        return op

    @dg.op(name=f"finish_{name}", ins={"records": dg.In(list)}, tags={**glue, **makes(name)}, **needs)
    def finishing(context: dg.AssetExecutionContext, records):
        workspace, wanted, handle = open_wanted(context)
        product = None
        if handle is None:
            handle, product = produce(workspace, wanted, lambda job: finish(job, records), blocking, context.run_id, context.log)
        context.add_asset_metadata(metadata_of(handle, product), asset_key=name)
        return handle

    steps = [(asking(r), trying(r), telling(r)) for r in range(num_rounds)]

    def compose(**upstream):
        records = start(**upstream)
        for ask_op, try_op, tell_op in steps:
            records = tell_op(records, ask_op(records).map(try_op).collect())
        return finishing(records)

    asset = graph_asset(name, config, compose, description=description, kinds=kinds, partitioned=False)
    return [asset, *[check_of_whole(name, c, b) for c, b in checks]]
