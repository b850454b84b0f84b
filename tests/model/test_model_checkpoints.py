"""A training that is ended within an epoch, by whatever, goes on there, here or on another node, and ends as an undisturbed one."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aframe_assets.config_load import resolved_text
from aframe_assets.model import checkpoints
from aframe_assets.model.checkpoints import PlacedCheckpoint, Stopped, Stopping, newest_checkpoint, read_checkpoint
from aframe_assets.model.lightning_module import Detector
from aframe_assets.model.training import train
from aframe_assets.store import open_store
from aframe_assets.store.errors import StoreError
from aframe_assets.store.files import stamp
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import MakeRoom
from aframe_assets.store.unfinished import Unfinished

PARTS = KeyParts(asset="model", code_version="1")
SCRIPT = """
import logging, sys, time
from pathlib import Path
from aframe_assets.config import Config
from aframe_assets.model.training import train
from aframe_assets.store import KeyParts, open_store
from aframe_assets.store.unfinished import Unfinished
config, work, url, training, validation, *background = sys.argv[1:]
unfinished = Unfinished(open_store(url, cache_dir=work + "/cache"), KeyParts(asset="model", code_version="1")) if url else None
logging.basicConfig(level=logging.INFO)
train(Config.model_validate_json(Path(config).read_text()), background={"train": [Path(b) for b in background[:-1]],
      "validation": [Path(background[-1])]}, training_signals=Path(training), validation_signals=Path(validation),
      workdir=Path(work), seed=3, watch=lambda *_: time.sleep(0.2), unfinished=unfinished)
"""


def kept_often(config, **resources):
    """`config` with a checkpoint after every step."""
    execution = config.execution
    training = execution.training.model_copy(update={"checkpoint_every": 1e-6} | resources)
    return config.model_copy(update={"execution": execution.model_copy(update={"training": training})})


def run(config, data, workdir: Path, **changes):
    arguments = {"training_signals": data.training, "validation_signals": data.validation, "seed": 3} | changes
    return train(config, background=data.background, workdir=workdir, **arguments)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def assert_equal(resumed, undisturbed) -> None:
    assert same(resumed.network, undisturbed.network)
    assert resumed.history == undisturbed.history and resumed.best_epoch == undisturbed.best_epoch


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tiny_data, tmp_path_factory):
    return run(tiny_config(), tiny_data, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def interrupted_at(monkeypatch):
    """Function (number, step) that has the signal arrive while that step is under way."""

    def arrange(number: int, step: int) -> None:
        original = Detector.training_step

        def training_step(self, batch, index):
            if self.global_step == step:
                monkeypatch.setattr(Detector, "training_step", original)
                os.kill(os.getpid(), number)
            return original(self, batch, index)

        monkeypatch.setattr(Detector, "training_step", training_step)

    return arrange


def kills(config, data, work: Path, tmp_path: Path, count: int, steps: Callable[[], int], url: str = "") -> None:
    """Starts the training in a process of its own and kills it at a random step, `count` times.

    Args:
        steps: after how many of them the state is kept.
    """
    path = tmp_path / "config.json"
    path.write_text(resolved_text(config))
    names = [str(p) for p in (*data.background["train"], *data.background["validation"])]
    command = [sys.executable, "-c", SCRIPT, str(path), str(work), url, str(data.training), str(data.validation), *names]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    total = config.model.training.max_epochs * config.model.training.batches_per_epoch
    for left in range(count, 0, -1):
        target = random.randint(steps() + 1, max(steps() + 1, (9 if url else total - 2) - left))
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while steps() < target:
            assert process.poll() is None and time.monotonic() < deadline, "the training ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed when past step {target} of {total}; the state after step {steps()} is kept")


def steps_in(folder: Path) -> int:
    return max((int(p.stem.split("-")[1]) for p in folder.glob("step-*.ckpt")), default=0)


def test_killed_at_a_random_step_it_ends_as_an_undisturbed_one(undisturbed, tiny_config, tiny_data, tmp_path):
    work = tmp_path / "work"
    kills(kept_often(tiny_config()), tiny_data, work, tmp_path, 1, lambda: steps_in(work / "checkpoints"))
    resumed = run(tiny_config(), tiny_data, work)
    assert resumed.resumed_step > 0 and resumed.resumed_from == resumed.resumed_step // 6
    assert_equal(resumed, undisturbed)


def test_a_node_is_lost_with_its_disk_and_another_goes_on_from_s3(undisturbed, tiny_config, tiny_data, tmp_path, bucket):
    url = f"s3://{bucket[1]}/run"
    unfinished = Unfinished(open_store(url, cache_dir=tmp_path / "another node's cache"), PARTS)
    config = kept_often(tiny_config(), observe_every=0.0)  # slowly: some steps pass while files are sent

    def steps() -> int:
        found = unfinished.find()
        return found.meta["step"] if found else 0

    kills(config, tiny_data, tmp_path / "lost", tmp_path, 1, steps, url)
    kept = steps()
    shutil.rmtree(tmp_path / "lost")
    resumed = run(config, tiny_data, tmp_path / "another node", unfinished=unfinished)
    assert resumed.resumed_step >= kept > 0
    assert_equal(resumed, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["resnet", "streaming"])
def test_killed_at_five_random_steps(architecture, tiny_config, tiny_data, tmp_path):
    """Batch norms have a state that group norms have not."""
    config = tiny_config(schedule="cosine", patience=3)
    a = config.model.architecture.model_copy(update={"name": architecture, "context": 0.5 if architecture == "streaming" else 0})
    config = config.model_copy(update={"model": config.model.model_copy(update={"architecture": a})})
    undisturbed = run(config, tiny_data, tmp_path / "undisturbed")
    work = tmp_path / "work"
    kills(kept_often(config), tiny_data, work, tmp_path, 5, lambda: steps_in(work / "checkpoints"))
    assert_equal(run(config, tiny_data, work), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_that_wants_the_node_gets_it_and_another_node_goes_on(
    number, undisturbed, tiny_config, tiny_data, tmp_path, interrupted_at, monkeypatch
):
    # a job of one rank on SLURM; Lightning would take them for its own, and requeue the job
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(number)
    step = random.randint(0, 16)
    interrupted_at(number, step)
    unfinished = Unfinished(open_store(tmp_path / "store"), PARTS)
    config = kept_often(tiny_config(), checkpoint_every=3600)  # nothing but the signal
    with pytest.raises(MakeRoom, match=f"{number.name}: .* kept in .* and in the store"):
        run(config, tiny_data, tmp_path / "first node", unfinished=unfinished)
    assert signal.getsignal(number) == before
    # after the last step of an epoch there is nothing to go on from but the epoch before
    expected = step + 1 if (step + 1) % 6 else step // 6 * 6
    assert (unfinished.find().meta["step"] if unfinished.find() else 0) == expected
    resumed = run(config, tiny_data, tmp_path / "second node", unfinished=unfinished)
    assert resumed.resumed_step == expected
    assert_equal(resumed, undisturbed)


def test_a_signal_while_windows_are_scored_costs_little(undisturbed, tiny_config, tiny_data, tmp_path, monkeypatch):
    original = Detector.validation_step

    def validation_step(self, data, index):
        if self.global_step == 12:
            monkeypatch.setattr(Detector, "validation_step", original)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, data, index)

    monkeypatch.setattr(Detector, "validation_step", validation_step)
    monkeypatch.setattr(checkpoints, "BEFORE_SCORING_S", 0.0)
    unfinished = Unfinished(open_store(tmp_path / "store"), PARTS)
    with pytest.raises(MakeRoom):
        run(tiny_config(), tiny_data, tmp_path / "first", unfinished=unfinished)
    resumed = run(tiny_config(), tiny_data, tmp_path / "second", unfinished=unfinished)
    assert resumed.resumed_step == 11
    assert_equal(resumed, undisturbed)


def test_an_interrupt_keeps_the_state_and_stays_an_interrupt(undisturbed, tiny_config, tiny_data, tmp_path, interrupted_at):
    interrupted_at(signal.SIGINT, 7)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(), tiny_data, tmp_path)
    assert [p.name for p in sorted((tmp_path / "checkpoints").glob("step*"))] == ["step-000000008.ckpt"]
    assert_equal(run(tiny_config(), tiny_data, tmp_path), undisturbed)
    assert not list((tmp_path / "checkpoints").glob("step*"))


def test_dropout_goes_on_as_it_would_have(tiny_config, tiny_data, tmp_path, interrupted_at, monkeypatch):
    from aframe_assets.model import lightning_module

    def with_dropout(*args):
        network = build(*args)
        network.fc = torch.nn.Sequential(torch.nn.Dropout(0.5), network.fc)
        return network

    build = lightning_module.build_network
    monkeypatch.setattr(lightning_module, "build_network", with_dropout)
    undisturbed = run(tiny_config(max_epochs=1), tiny_data, tmp_path / "undisturbed")
    interrupted_at(signal.SIGINT, 2)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(max_epochs=1), tiny_data, tmp_path / "work")
    torch.rand(5)  # another process would be at another place
    assert_equal(run(tiny_config(max_epochs=1), tiny_data, tmp_path / "work"), undisturbed)


def test_a_second_signal_does_not_wait():
    with Stopping() as stopping, pytest.raises(Stopped):
        stopping.waits = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
    with Stopping(), pytest.raises(Stopped):  # as between epochs, while all windows are scored
        os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stopping.number is None
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_store_or_disk_that_fails_ends_nothing(undisturbed, tiny_config, tiny_data, tmp_path, monkeypatch, caplog):
    import lightning

    class Lost(Unfinished):
        def keep(self, files, meta):
            raise StoreError("connection lost")

    save = lightning.Trainer.save_checkpoint

    def full(self, path, *args, **kwargs):
        if "step-000000003" in str(path):
            raise OSError(28, "No space left on device")
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", full)
    with caplog.at_level(logging.WARNING):
        unfinished = Lost(open_store(tmp_path / "store"), PARTS)
        assert_equal(run(kept_often(tiny_config()), tiny_data, tmp_path / "work", unfinished=unfinished), undisturbed)
    assert any("could not be kept in the store (connection lost)" in m for m in caplog.messages)
    assert any("step 3 could not be kept" in m and "No space left" in m for m in caplog.messages)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small filesystem cannot be mounted here (needs root)")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("devices", [("cpu",), pytest.param(("cpu", "cpu"), marks=pytest.mark.slow)])
def test_a_disk_that_is_really_full_costs_no_epoch_and_is_told(devices, tiny_config, tiny_data, small_disk, tmp_path, caplog):
    config, filler = kept_often(tiny_config(), observe_every=0.0), small_disk / "filler"
    lost = Unfinished(open_store(tmp_path / "store"), PARTS)

    def fill(numbers, plots):
        if numbers.get("step", 0) >= 8 and not filler.exists():
            with filler.open("wb", buffering=0) as f, pytest.raises(OSError, match="No space left"):
                while True:
                    f.write(bytes(4096))

    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="no space left for a checkpoint; free space there"):
        run(config, tiny_data, small_disk, devices=devices, watch=fill, unfinished=lost)
    assert any("could not be kept in" in m and "training goes on" in m for m in caplog.messages)
    filler.unlink()
    assert not [p.name for p in (small_disk / "checkpoints").iterdir() if p.name.startswith(".")], "nothing half-written is left"
    resumed = run(tiny_config(), tiny_data, small_disk, devices=devices)
    assert 6 <= resumed.resumed_step < 12
    if len(devices) == 1:
        assert_equal(resumed, run(tiny_config(), tiny_data, tmp_path / "undisturbed"))


def test_a_kill_leaves_no_half_of_a_checkpoint_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))  # is not there
    keep = checkpoints.WholeFiles()
    killed = tmp_path / f".writing-{stamp().replace(str(os.getpid()), str(2**22 + 1))}"
    killed.write_bytes(b"half")
    keep.save_checkpoint({"epoch": 1, "x": torch.ones(3)}, tmp_path / "a.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"] and read_checkpoint(tmp_path / "a.ckpt")["epoch"] == 1


def test_a_signal_while_a_checkpoint_is_written_is_not_taken_for_a_broken_archive():
    class Signalled:
        def write(self, data):
            raise Stopped

    with pytest.raises(Stopped):
        checkpoints._save({"x": torch.ones(3)}, Signalled())


def test_a_disk_that_does_not_answer_is_not_taken_for_an_empty_one(tmp_path, monkeypatch, caplog):
    torch.save({"epoch": 7, "global_step": 42}, tmp_path / "last-epoch=0007.ckpt")
    (tmp_path / "step-000000050.ckpt").write_bytes((tmp_path / "last-epoch=0007.ckpt").read_bytes()[:300])
    assert newest_checkpoint(tmp_path)[1]["global_step"] == 42
    assert ["step-000000050.ckpt is not a whole checkpoint" in m for m in caplog.messages] == [True]

    def stale(*args, **kwargs):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        newest_checkpoint(tmp_path)


def test_a_signal_after_the_last_question_is_seen_before_windows_are_scored(tmp_path):
    class Deciding:
        global_step, num_training_batches = 5, 6

        @property
        def strategy(self):
            return self

        def reduce_boolean_decision(self, decision, all):
            os.kill(os.getpid(), signal.SIGTERM)
            return decision

    with Stopping() as stopping, pytest.raises(Stopped):
        keeper = checkpoints.Keeper(tmp_path, 3600.0, stopping, None, logging.getLogger("test"))
        keeper.on_train_batch_start(Deciding(), None, None, 5)
        keeper.on_train_batch_end(Deciding(), None, None, None, 5)
        raise AssertionError("a training that goes on to score windows")


def test_a_store_that_cannot_say_what_it_has_is_an_error_only_where_all_would_be_lost(tiny_config, tiny_data, tmp_path, caplog):
    class Silent(Unfinished):
        def find(self):
            raise StoreError("no answer")

    unfinished = Silent(open_store(tmp_path / "store"), PARTS)
    with pytest.raises(StoreError, match="no answer"):
        run(tiny_config(), tiny_data, tmp_path / "empty", unfinished=unfinished)
    run(tiny_config(max_epochs=1), tiny_data, tmp_path / "work")
    assert run(tiny_config(max_epochs=1), tiny_data, tmp_path / "work", unfinished=unfinished).resumed_step == 6


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    with (tmp_path / "last-epoch=0009.ckpt").open("wb") as f:
        pickle.dump({"epoch": 9, "global_step": 9, "callbacks": Evil()}, f)
    torch.save({"epoch": 9, "global_step": 9, "callbacks": Evil()}, tmp_path / "best-epoch=0009.ckpt")
    assert newest_checkpoint(tmp_path) is None and not (tmp_path / "executed").exists()


def test_the_best_epoch_is_known_in_another_folder(tmp_path):
    first = PlacedCheckpoint(tmp_path / "a", monitor="m", mode="max")
    first.best_model_path, first.best_model_score = str(tmp_path / "a" / "best.ckpt"), torch.tensor(0.7)
    first.best_k_models, first.kth_best_model_path = {first.best_model_path: torch.tensor(0.7)}, first.best_model_path
    second = PlacedCheckpoint(tmp_path / "b", monitor="m", mode="max")
    second.load_state_dict(first.state_dict())
    assert second.best_model_path == second.kth_best_model_path == str(tmp_path / "b" / "best.ckpt")
    assert list(second.best_k_models) == [second.best_model_path] and second.best_model_score == 0.7
    assert read_checkpoint(tmp_path / "nothing") is None
