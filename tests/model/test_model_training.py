"""Training resumes where it was killed and ends as an undisturbed one; its record is whole."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from aframe_assets.model import progress
from aframe_assets.model.checkpoints import newest_checkpoint
from aframe_assets.model.lightning_module import Detector, learning_rate


def run(config, data, workdir: Path, **changes):
    return data.train(config, workdir, **changes)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tiny_data, tmp_path_factory):
    return run(tiny_config(), tiny_data, tmp_path_factory.mktemp("undisturbed"))


def test_training_gives_the_best_epoch_and_its_record(undisturbed):
    assert [r["epoch"] for r in undisturbed.history] == [0, 1, 2] and undisturbed.history[-1]["step"] == 18
    best = max(undisturbed.history, key=lambda r: r["valid_efficiency"])
    assert undisturbed.best_epoch == best["epoch"] and undisturbed.resumed_from == 0
    assert all(np.isfinite(list(r.values())).all() for r in undisturbed.history)
    assert not undisturbed.network.training
    assert list(undisturbed.logs.glob("tensorboard/events*")) and list(undisturbed.logs.glob("csv/*/metrics.csv"))


def test_stops_between_epochs_change_nothing(undisturbed, tiny_config, tiny_data, tmp_path):
    told, here = [], tmp_path / "0"
    here.mkdir()
    for until in (1, 2, 9):
        # each time in another folder, as on another node: the best epoch is that of all, not of those since
        here = here.rename(tmp_path / str(until))
        part = run(tiny_config(), tiny_data, here, until=until, on_epoch=lambda rows: told.append(len(rows)))
        assert len(part.history) == min(until, 3)
    assert part.best_epoch == undisturbed.best_epoch
    assert told == [1, 2, 3] and part.resumed_from == 2
    assert part.history == undisturbed.history and same(part.network, undisturbed.network)


def test_a_checkpoint_cut_short_is_passed_over(undisturbed, tiny_config, tiny_data, tmp_path):
    run(tiny_config(max_epochs=1), tiny_data, tmp_path)
    best, last = sorted((tmp_path / "checkpoints").glob("*.ckpt"))
    last.write_bytes(last.read_bytes()[:5000])
    assert newest_checkpoint(tmp_path / "checkpoints")[0] == best
    # nothing readable at all: from the beginning
    best.write_bytes(b"")
    again = run(tiny_config(), tiny_data, tmp_path)
    assert again.resumed_from == 0 and same(again.network, undisturbed.network)


def test_a_finished_training_is_not_repeated(undisturbed, tiny_config, tiny_data):
    before = time.monotonic()
    again = run(tiny_config(), tiny_data, undisturbed.logs.parent)
    assert again.resumed_from == 3 and same(again.network, undisturbed.network) and time.monotonic() - before < 2
    assert again.history == undisturbed.history


def test_early_stopping_ends_it_and_stays_ended(tiny_config, tiny_data, tmp_path):
    config = tiny_config(max_epochs=8, patience=1, learning_rate=1e-9)
    first = run(config, tiny_data, tmp_path)
    assert len(first.history) < 8
    again = run(config, tiny_data, tmp_path)
    assert again.history == first.history and same(again.network, first.network)


def test_log_lines_where_there_is_no_terminal(tiny_config, tiny_data, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="aframe_assets.model.training"):
        run(tiny_config(max_epochs=1), tiny_data, tmp_path)
    assert any("epoch 1 of 1 done" in m and "valid_auroc" in m for m in caplog.messages)


def test_it_learns(tiny_config, tiny_data, tmp_path):
    config = tiny_config(max_epochs=3, batches_per_epoch=60, min_snr=25, learning_rate=2e-2, glitch_prob=0.0, gradient_clip=5.0)
    result = run(config, tiny_data, tmp_path)
    assert result.metrics["valid_auroc"] > 0.9 and result.history[-1]["train_loss"] < 0.6 * result.history[0]["train_loss"]


def test_the_cosine_rises_in_a_line_and_falls_to_nothing(tiny_config):
    t = tiny_config(schedule="cosine", pct_lr_ramp=0.25, max_epochs=5, batches_per_epoch=8, learning_rate=2.0).model.training
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=t.learning_rate)
    schedule, rates = learning_rate(optimiser, t), []
    for _ in range(40):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates[:11] == pytest.approx([0.2 * i for i in range(1, 11)] + [2.0])
    assert rates[25] == pytest.approx(1.0) and 0 < rates[-1] < 0.01 and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_precision_and_determinism_hold_for_the_training_and_no_longer(precision, tiny_config, tiny_data, tmp_path, monkeypatch):
    seen, original = [], Detector.training_step

    def flags():
        backends = torch.backends
        return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()

    def training_step(self, batch, index):
        loss = original(self, batch, index)
        seen.append((*flags(), self(batch[0]).dtype))
        return loss

    monkeypatch.setattr(Detector, "training_step", training_step)
    before = flags()
    config = tiny_config(max_epochs=1, batches_per_epoch=1, precision=precision)
    training = config.execution.training.model_copy(update={"deterministic": precision != "fp32"})
    run(config.model_copy(update={"execution": config.execution.model_copy(update={"training": training})}), tiny_data, tmp_path)
    tf32, kind = precision == "tf32", torch.bfloat16 if precision == "bf16" else torch.float32
    assert seen == [(tf32, tf32, precision != "fp32", kind)] and flags() == before


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(undisturbed, tiny_config, tiny_data, tmp_path):
    config = tiny_config()
    training = config.execution.training.model_copy(update={"compile": True})
    config = config.model_copy(update={"execution": config.execution.model_copy(update={"training": training})})
    compiled = run(config, tiny_data, tmp_path)
    pairs = zip(compiled.history, undisturbed.history, strict=True)
    assert all(a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3) for a, b in pairs)
    assert compiled.network.state_dict().keys() == undisturbed.network.state_dict().keys()
    assert compiled.network._compiled_call_impl is None, "what is exported and searched with is not compiled"


def test_compilation_without_a_compiler_is_refused(tiny_config, tiny_data, tmp_path, monkeypatch):
    config = tiny_config()
    training = config.execution.training.model_copy(update={"compile": True})
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"execution\.training\.compile = True: there is no C\+\+ compiler"):
        run(config.model_copy(update={"execution": config.execution.model_copy(update={"training": training})}), tiny_data, tmp_path)


def test_divergence_is_an_error_that_says_what_to_do(tiny_config, tiny_data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"lower model\.training\.learning_rate"):
        run(tiny_config(learning_rate=1e30), tiny_data, tmp_path)


def test_metrics_csv_has_a_row_per_epoch(undisturbed, tmp_path):
    from aframe_assets.model.progress import learning_curve, write_rows

    with write_rows(undisturbed.history, tmp_path / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [float(r["valid_auroc"]) for r in rows] == [r["valid_auroc"] for r in undisturbed.history]
    assert learning_curve(undisturbed.history).startswith(b"\x89PNG") and len(learning_curve(undisturbed.history)) < 150_000


@pytest.mark.parametrize("shape", [(64, 3, 3072), (64, 2, 2048), (64, 1, 49152)])
def test_an_example_batch_fits_on_an_assets_page(shape):
    """Noise is what a PNG packs worst; above 150 kB it would lose pixels (see `small`)."""
    from aframe_assets.model.progress import example_batch

    x, signals = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.arange(64)[:, None] % 3 == 0
    assert 10_000 < len(example_batch(x, signals.float())) < 120_000
    assert example_batch(x[:2], torch.zeros(2, 1)).startswith(b"\x89PNG"), "fewer than there are places for"


def test_chance_is_drawn_as_chance_on_the_roc_curve_s_logarithmic_axis(monkeypatch):
    drawn = []
    monkeypatch.setattr(progress, "_png", lambda figure: drawn.append(figure) or b"")
    progress.roc_curve([0.0, 0.001, 0.1, 1.0], [0.2, 0.3, 0.8, 1.0], 0.01)
    (axes,) = drawn[0].axes
    (chance,) = [line for line in axes.lines if line.get_label() == "chance"]
    # where the eye reads it: straight pieces of the axes, and not of the values
    to_share = axes.transAxes.inverted().transform
    x, y = to_share(axes.transData.transform(np.column_stack(chance.get_data()))).T
    for fpr in (0.003, 0.03, 0.1, 0.5):
        at = to_share(axes.transData.transform((fpr, fpr)))
        assert np.interp(at[0], x, y) == pytest.approx(at[1], abs=0.01)
