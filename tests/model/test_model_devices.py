"""One training on several devices, here two processes on the CPU, against one process with the whole batch."""

from __future__ import annotations

import copy
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from aframe_assets.config_load import build_config, resolved_text
from aframe_assets.model import training
from aframe_assets.model.batches import TrainingBatches
from aframe_assets.model.checkpoints import Keeper
from aframe_assets.model.lightning_module import Detector
from aframe_assets.model.ranks import Rank
from aframe_assets.model.training import _fit, newest_checkpoint
from aframe_assets.model.validation import ValidationSet, score
from aframe_assets.store.job import MakeRoom

TWO = ("cpu", "cpu")
TRAINING = {"batch_size": 13, "max_epochs": 2, "batches_per_epoch": 4, "swap_prob": 0.2, "gradient_clip": 1.0}
"""An odd batch, which two ranks cannot share evenly, and swaps between their elements."""


def run(config, data, workdir: Path, **more):
    return data.train(config, workdir, **more)


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = newest_checkpoint(path / "checkpoints")[1]["state_dict"]
    return {k: v for k, v in state.items() if v.is_floating_point()}


def assert_close(ours, wanted, tolerance: float) -> None:
    for name, value in wanted.items():
        if value.is_floating_point():
            assert (ours[name] - value).abs().max() <= tolerance * value.abs().max() + 1e-6, name


def test_two_processes_equal_one_with_the_whole_batch(tiny_config, tiny_data, tmp_path):
    config = tiny_config(**TRAINING)
    one = run(config, tiny_data, tmp_path / "one")
    told, seen = [], []
    watch = {"on_epoch": told.append, "watch": lambda numbers, plots: seen.append((dict(numbers), list(plots)))}
    two = run(config, tiny_data, tmp_path / "two", devices=TWO, **watch)
    start = dict(Detector(config).state_dict())
    ours, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert_close(ours, wanted, 1e-3)
    # what is compared is not what training starts with
    assert max((wanted[k] - start[k]).abs().max() for k in wanted) > 1e-2
    for a, b in zip(two.history, one.history, strict=True):
        assert set(a) == set(b) and a["step"] == b["step"]
        assert [a[k] for k in a] == pytest.approx([b[k] for k in a], rel=2e-3, abs=2e-3)
    # so that one process can go on where two stopped, and the other way round
    theirs, mine = (newest_checkpoint(tmp_path / name / "checkpoints")[1] for name in ("one", "two"))
    assert set(theirs) == set(mine) and list(theirs["state_dict"]) == list(mine["state_dict"])
    assert theirs["optimizer_states"][0]["param_groups"] == mine["optimizer_states"][0]["param_groups"]
    assert run(config, tiny_data, tmp_path / "two").resumed_from == 2
    assert [len(rows) for rows in told] == [1, 2] and [plots for _, plots in seen] == [["example batch"], ["learning curve"]]
    # only the first rank wrote logs
    assert len(list((tmp_path / "two" / "logs" / "csv" / "start_0").glob("*.csv"))) == 1


def reference(config, data, num_ranks: int, seed: int):
    """Training with the statistics of each rank's rows in batch norms, in one process and without any of what ranks use."""
    t = config.model.training
    torch.manual_seed(seed)
    network = Detector(config).network.train()
    batches = TrainingBatches(config, data.background["train"], data.training, seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=t.learning_rate, weight_decay=t.weight_decay)
    steps = t.max_epochs * t.batches_per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=t.learning_rate, total_steps=steps, pct_start=t.pct_lr_ramp)
    for step in range(steps):
        x, y = batches.batch(step)
        buffers, kept = copy.deepcopy(dict(network.named_buffers())), None
        optimiser.zero_grad()
        for part in torch.arange(len(x)).tensor_split(num_ranks):
            for name, buffer in network.named_buffers():
                buffer.data.copy_(buffers[name])
            # every element counts once, whoever has it
            loss = torch.nn.functional.binary_cross_entropy_with_logits(network(x[part]), y[part], reduction="sum") / len(x)
            loss.backward()
            kept = kept or copy.deepcopy(dict(network.named_buffers()))
        for name, buffer in network.named_buffers():
            buffer.data.copy_(kept[name])  # running statistics are the first rank's
        torch.nn.utils.clip_grad_norm_(network.parameters(), t.gradient_clip)
        optimiser.step()
        schedule.step()
    return network.eval()


def test_batch_norms_take_the_statistics_of_each_rank(tiny_config, tiny_data, tmp_path):
    tree = tiny_config(**TRAINING).model_dump(mode="json")
    tree["model"]["architecture"] |= {"name": "streaming", "context": 0.125}
    config = build_config(tree)
    two = run(config, tiny_data, tmp_path, devices=TWO)
    want, alone = reference(config, tiny_data, 2, 3), reference(config, tiny_data, 1, 3)
    ours = {k.removeprefix("network."): v for k, v in weights(tmp_path).items()}
    assert_close(ours, dict(want.state_dict()), 1e-3)
    running = [k for k in ours if "running" in k]
    assert running and max((ours[k] - alone.state_dict()[k]).abs().max() for k in running) > 1e-3
    # what all ranks together said of the validation data is what the network that is kept says of them
    data = ValidationSet(config, tiny_data.background["validation"], tiny_data.validation)
    kept = Detector(config)
    kept.load_state_dict(newest_checkpoint(tmp_path / "checkpoints")[1]["state_dict"])
    again = score(kept.network.eval(), data, config.model.training.batch_size)
    metrics = again.metrics(config.model.training)
    assert {k: two.history[-1][k] for k in metrics} == pytest.approx(metrics, rel=1e-6)


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += list(x)
        return x.square().mean((1, 2))[:, None]


class Unmerged(Rank):
    """A rank that keeps its part to itself."""

    def merged(self, parts: torch.Tensor) -> torch.Tensor:
        return parts


@pytest.mark.parametrize("size", [2, 3, 64])
def test_every_window_is_scored_by_one_rank(tiny_config, tiny_data, size):
    # with 64 ranks most have nothing to score, and yet merge
    config = tiny_config()
    data = ValidationSet(config, tiny_data.background["validation"], tiny_data.validation)
    alone = Counting()
    want = score(alone, data, 16)
    networks = [Counting() for _ in range(size)]
    parts = [score(network, data, 16, Unmerged(("cpu",) * size, i)) for i, network in enumerate(networks)]
    seen = [x for network in networks for x in network.seen]
    of_signal = config.model.training.valid_views + data.injected_windows
    assert len(seen) == len(alone.seen) == data.num_windows + len(data.signals) * of_signal
    assert len({x.numpy().tobytes() for x in seen}) == len({x.numpy().tobytes() for x in alone.seen}) > 0.9 * len(seen)
    for slide, whole in enumerate(want.background):
        together = np.stack([p.background[slide] for p in parts])
        assert ((together != 0).sum(0) == 1).all() and np.array_equal(together.sum(0), whole)
    assert np.array_equal(np.sum([p.foreground for p in parts], 0), want.foreground)
    assert np.array_equal(np.sum([p.injected.scores for p in parts], 0), want.injected.scores)


def late(rank, **work):
    """`_fit`, whose second rank begins its first step after the first one has."""
    begin = Keeper.on_train_start

    def on_train_start(self, trainer, module):
        time.sleep(5.0 * rank.index)
        begin(self, trainer, module)

    Keeper.on_train_start = on_train_start
    _fit(rank, **work)


@pytest.mark.slow
def test_ranks_keep_their_state_together_when_they_are_asked_to_end(tiny_config, tiny_data, tmp_path, monkeypatch):
    config = tiny_config(**TRAINING | {"batches_per_epoch": 30})
    monkeypatch.setattr(training, "_fit", late)

    def stop(numbers, plots):
        # a batch system reaches all processes of a job, Dagster the group of the step
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(MakeRoom, match=r"SIGTERM: what was trained is kept in .*; the next try goes on from there"):
        run(config, tiny_data, tmp_path / "two", devices=TWO, watch=stop)
    done = newest_checkpoint(tmp_path / "two" / "checkpoints")[1]["global_step"]
    assert 0 < done < 30
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    # and goes on in one process
    monkeypatch.setattr(training, "_fit", _fit)
    again = run(config, tiny_data, tmp_path / "two")
    assert again.resumed_step == done
    run(config, tiny_data, tmp_path / "one")
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), 1e-3)


@pytest.mark.slow
def test_a_failing_rank_is_told(tiny_config, tiny_data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"lower model\.training\.learning_rate"):
        run(tiny_config(learning_rate=1e30), tiny_data, tmp_path, devices=TWO)


def test_a_batch_system_that_started_several_tasks_is_not_asked(tiny_config, tiny_data, tmp_path, monkeypatch):
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    slurm = {"NTASKS": "4", "PROCID": "2", "LOCALID": "2", "NODEID": "0", "JOB_ID": "7", "NNODES": "1", "NODELIST": "n1", "JOB_NAME": "x"}
    # and what torchrun and mpirun set
    others = {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    for name, value in ({f"SLURM_{k}": v for k, v in slurm.items()} | others).items():
        monkeypatch.setenv(name, value)
    # read from these at import
    monkeypatch.setattr(rank_zero_only, "rank", 2)
    run(tiny_config(max_epochs=1, batches_per_epoch=2), tiny_data, tmp_path)
    assert newest_checkpoint(tmp_path / "checkpoints")[1]["global_step"] == 2
    assert list((tmp_path / "logs").glob("csv/*/metrics.csv")) and rank_zero_only.rank == 0


@pytest.mark.slow
def test_a_step_of_dagster_trains_in_two_processes(published, tiny_config):
    import dagster as dg

    from aframe_assets.model.assets import assets
    from aframe_assets.model.bundle import load_bundle
    from aframe_assets.store.bodies import Experiment
    from aframe_assets.store.io_managers import io_manager_for

    tree = tiny_config(**TRAINING).model_dump(mode="json")
    tree["execution"]["training"] |= {"devices": ["cpu", "cpu"], "observe_every": 0.0, "checkpoint_every": 1e-6}
    config = build_config(tree)
    store, url = published(config)
    resources = {"experiment": Experiment(config_json=resolved_text(config), store_url=url), "io_manager": io_manager_for(url)}
    items = [a for a in assets(config) if isinstance(a, dg.AssetsDefinition) and not isinstance(a, dg.AssetChecksDefinition)]
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize(items, selection=["model"], resources=resources, instance=instance).success
        (run,) = instance.get_runs()
        records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION).records
    seen = [r.asset_observation.metadata for r in records]
    assert seen[0]["example batch"].value.startswith("![example batch](data:image/png")
    assert [m["step"].value for m in seen if "learning curve" in m] == [4, 8]
    assert load_bundle(store.open_local(store.manifest("model").handle)).network is not None
    # what another process has kept of the unfinished training goes with it
    assert store.manifest("model_unfinished") is None
