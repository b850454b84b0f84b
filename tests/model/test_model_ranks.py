"""Ranks: started from anywhere, one that dies ends the others with its error told, and none outlives its caller."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from aframe_assets.config import TrainingResources
from aframe_assets.model.launching import RankError, launch
from aframe_assets.model.ranks import Rank, check_devices, has_unused, training_devices

LOG = logging.getLogger("test")
TWO = ("cpu", "cpu")


def summed(rank, *, folder, log, seen):
    total = torch.full((3,), float(rank.index + 1))
    dist.all_reduce(total)
    parts = torch.zeros(5)
    parts[rank.rows(5)] = torch.arange(5.0)[rank.rows(5)] + 1
    log.info(f"info of {rank.index}")
    log.warning(f"warning of {rank.index}")
    seen(rank.index, os.getpid(), total.tolist(), rank.merged(parts).tolist(), torch.get_num_threads())


def fails(rank, *, how, log):
    """One rank fails while the other waits for it."""
    if rank.index == 1:
        if how == "raise":
            raise FloatingPointError("loss is nan")
        if how == "own error":
            raise type("Local", (Exception,), {})("cannot be pickled")
        os.kill(os.getpid(), getattr(signal, how))
    dist.all_reduce(torch.ones(1))


def waits(rank, *, folder, log):
    Path(folder, str(rank.index)).write_text(str(os.getpid()))
    dist.all_reduce(torch.ones(1))
    time.sleep(600)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_dead(pids, seconds=60.0):
    deadline = time.monotonic() + seconds
    while any(alive(p) for p in pids):
        assert time.monotonic() < deadline, f"{pids} go on"
        time.sleep(0.05)


def test_ranks_work_together_and_tell_their_caller(caplog, monkeypatch, tmp_path):
    # what a batch system says of its own tasks must not be taken for these ranks
    for name, value in {"RANK": "5", "WORLD_SIZE": "9", "LOCAL_RANK": "5", "MASTER_PORT": "1", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    told = []
    with caplog.at_level(logging.INFO):
        launch(summed, TWO, {"folder": tmp_path}, log=LOG, told={"seen": lambda *x: told.append(x)}, threads=2)
    assert sorted(t[0] for t in told) == [0, 1] and len({t[1] for t in told} | {os.getpid()}) == 3
    assert all(t[2:] == ([3.0] * 3, [1.0, 2.0, 3.0, 4.0, 5.0], 1) for t in told)
    assert sorted(r.getMessage() for r in caplog.records) == ["info of 0", "rank 1: warning of 1", "warning of 0"]
    wait_until_dead([t[1] for t in told])


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("raise", FloatingPointError, "loss is nan"),
        ("own error", RankError, "Local: cannot be pickled"),
        ("SIGKILL", RankError, r"rank 1 of 2 \(cpu\) ended by signal SIGKILL; the others were stopped"),
    ],
)
def test_the_error_of_the_rank_that_failed_is_told(how, error, words):
    with pytest.raises(error, match=words) as e:
        launch(fails, TWO, {"how": how}, log=LOG)
    if how != "SIGKILL":
        assert "in rank 1 of 2 (cpu)" in str(e.value.__cause__) and "in fails" in str(e.value.__cause__)


def test_ranks_end_with_a_caller_that_is_killed(tmp_path, tmp_path_factory):
    script = f"""
import logging, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from aframe_assets.model.launching import launch
from test_model_ranks import waits
launch(waits, ("cpu", "cpu"), {{"folder": {str(tmp_path)!r}}}, log=logging.getLogger())
"""
    # what is killed leaves its private folder
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "TMPDIR": str(tmp_path_factory.mktemp("tmp"))}
    caller = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 240
    while len(pids := [int(p.read_text() or 0) for p in tmp_path.iterdir()]) < 2 or 0 in pids:
        assert caller.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    wait_until_dead(pids)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rows_and_pieces_of_all_ranks_are_the_whole_once(size):
    ranks = [Rank(("cpu",) * size, i) for i in range(size)]
    for count in (7, 8, 384):
        rows = [list(range(count))[r.rows(count)] for r in ranks]
        assert list(itertools.chain(*rows)) == list(range(count)) and max(map(len, rows)) - min(map(len, rows)) <= 1
        # mean over ranks of weighted means is the mean over all
        x = torch.rand(count, dtype=torch.float64)
        means = [x[r.rows(count)].mean() * r.weight(len(x[r.rows(count)]), count) for r in ranks]
        torch.testing.assert_close(sum(means) / size, x.mean())
        assert sorted(itertools.chain(*(r.share(range(count)) for r in ranks))) == list(range(count))


class Spare(torch.nn.Module):
    """A batch norm, and a layer that may not be used."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.norm, self.layer, self.used = torch.nn.BatchNorm1d(2), torch.nn.Linear(5, 5), used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.layer(x) if self.used else x


@pytest.mark.parametrize("used", [True, False])
def test_parameters_that_no_loss_reaches_are_seen_and_nothing_is_changed(used):
    network = Spare(used)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert has_unused(network, (3, 2, 5)) is not used
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([], "expected one or more of one kind"),
        (["cpu", "cuda:0"], "expected one or more of one kind"),
        (["tpu"], "expected one or more of one kind"),
        (["cpu"] * 5, "5 devices for model.training.batch_size = 4"),
        (["cuda:99"], r"no device cuda:99: this process sees \d+ GPUs \(CUDA_VISIBLE_DEVICES = "),
    ],
)
def test_devices_that_cannot_be(devices, words):
    with pytest.raises(ValueError, match=words):
        check_devices(devices, 4)


@pytest.mark.parametrize(
    ("asked", "seen", "got", "warned"),
    [
        ({}, 0, ("cpu",), False),
        ({}, 2, ("cuda:0",), False),
        ({"gpus": 2}, 4, ("cuda:0", "cuda:1"), False),
        ({"gpus": 4}, 2, ("cuda:0", "cuda:1"), True),
        ({"gpus": 1}, 0, ("cpu",), True),
        ({"devices": ["cpu", "cpu"]}, 4, ("cpu", "cpu"), False),
        ({"gpus": 2, "devices": ["cuda:1", "cuda:3"]}, 4, ("cuda:1", "cuda:3"), False),
    ],
)
def test_devices_of_a_training(asked, seen, got, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert check_devices(training_devices(TrainingResources(**asked), LOG), 16) == got
    assert ("execution.training.gpus" in caplog.text) is warned
