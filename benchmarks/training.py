"""``python -m benchmarks.training [--json] [--case resnet34,small]``: a step of training beside its network alone.

A step is that of Lightning's loop with the training data of an experiment: its share of reading and whitening background and of reading
signals, the batch, forward, backward, clipping, optimiser, schedule and logs. The network alone is forward and backward on one batch that
stays where it is. On a CPU both are CPU seconds of all threads, so that what is done meanwhile counts as well; on a
GPU they are elapsed seconds. Both take turns, and the least of the rounds counts. A plain loader reads, whitens and injects each
sample by itself, as upstream's augmentation describes it (reference 2.7), in the process of the training.

A pool of data serves 500 steps, so its cost is measured once, on a part of it, and scaled. Data are white noise and short chirps: what
they are does not change what they cost.
"""

from __future__ import annotations

import argparse
import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from aframe_assets.config import Config
from aframe_assets.config_load import build_config
from aframe_assets.model.ahead import read_ahead
from aframe_assets.model.batches import TrainingBatches
from aframe_assets.model.data_module import TrainingData
from aframe_assets.model.lightning_module import Detector
from aframe_assets.model.samplers import MAX_BLOCKS, MAX_SIGNALS, REFILL_STEPS, RUN, STRAIN_SCALE, generator_of
from aframe_assets.strain.background_file import StrainFile, background_name, parse_background_name, write_background
from aframe_assets.waveforms.ledger import SIGNAL, WaveformPolarizationSet, WaveformSet
from benchmarks.table import cpu_seconds, show

GPS, BLOCKS, SIGNALS = 1240600000, 24, 512


@dataclass(frozen=True)
class Case:
    """A network and a batch; the rest is that of a preset. `bound` is what the ratio has to stay below."""

    preset: str
    bound: float
    training: Mapping[str, Any] = field(default_factory=dict)

    def config(self, steps: int) -> Config:
        """One epoch of `steps` steps."""
        return build_config({"preset": self.preset, "model": {"training": {"batches_per_epoch": steps, "max_epochs": 1, **self.training}}})


CASES = {"resnet34": Case("o3", 1.15, {"batch_size": 32}), "small": Case("small", 1.5)}
ON_GPU = {"o3": Case("o3", 1.10, {"precision": "bf16"})}


def chirps(count: int, config: Config, rng: np.random.Generator) -> np.ndarray:
    """(count, 2, time): cross and plus, loudest at the merger."""
    w, fs = config.waveforms, config.sample_rate
    t = np.arange(int(w.duration * fs)) / fs - (w.duration - w.right_pad)
    f = rng.uniform(40, 200, (count, 1))
    envelope = 1e-21 * np.exp(-((t / 0.1) ** 2))
    return np.stack([envelope * np.sin(2 * np.pi * f * t), envelope * np.cos(2 * np.pi * f * t)], 1).astype(np.float32)


def write_data(config: Config, folder: Path) -> dict[str, Any]:
    """Files of a training: `BLOCKS` blocks of background, `SIGNALS` signals; what `TrainingData` takes."""
    rng, fs, w = np.random.default_rng(0), config.sample_rate, config.waveforms
    c, t = config.conditioning, config.model.training
    duration = int(c.psd_length + c.fduration + BLOCKS * t.psd_block) + 1
    background = {}
    for i, (role, seconds) in enumerate((("train", duration), ("validation", int(c.psd_length + 120)))):
        path, start = folder / background_name(GPS + 10_000 * i, seconds), GPS + 10_000 * i
        write_background(path, {ifo: rng.normal(0, 1e-23 * np.sqrt(fs / 2), int(seconds * fs)) for ifo in config.ifos}, start, fs)
        background[role] = [path]
    common = {"sample_rate": fs, "duration": w.duration, "right_pad": w.right_pad}
    waves, few = chirps(SIGNALS, config, rng), chirps(8, config, rng)
    training = WaveformPolarizationSet(
        **{k: np.ones(SIGNALS) for k in SIGNAL}, **common, num_injections=SIGNALS, waveforms={"cross": waves[:, 0], "plus": waves[:, 1]}
    )
    validation = WaveformSet(
        **{k: np.ones(8) for k in SIGNAL},
        **common,
        snr=np.full(8, 20.0),
        ifo_snrs=np.full((8, len(config.ifos)), 14.0),
        ifos=list(config.ifos),
        num_injections=8,
        waveforms={ifo.lower(): few[:, i % 2] for i, ifo in enumerate(config.ifos)},
    )
    return {
        "background": background,
        "training_signals": training.write(folder / "training_waveforms.hdf5"),
        "validation_signals": validation.write(folder / "val_waveforms.hdf5"),
    }


class Clock(lightning.Callback):
    """Seconds at the start of each step."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.times = now, []

    def on_train_batch_start(self, *_: Any) -> None:
        self.times.append(self.now())


class PlainSamples(Dataset):
    """Each sample by itself: reads its strain and its signal, finds the PSD, whitens, projects, rescales."""

    def __init__(self, config: Config, data: Mapping[str, Any]) -> None:
        self.batches = TrainingBatches(config, data["background"]["train"], data["training_signals"], 0)
        self.config, self.path, self.signals = config, data["background"]["train"][0], data["training_signals"]
        start, stop = parse_background_name(self.path)
        self.seconds = stop - start

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        import h5py

        from aframe_assets.strain.background_file import read_background

        b, c, fs = self.batches, self.config.conditioning, self.config.sample_rate
        rng = generator_of(0, 9, number)
        length = c.psd_length + c.kernel_length + c.fduration
        kernels, psds = [], []
        for ifo in self.config.ifos:
            start = GPS + float(torch.rand((), generator=rng)) * (self.seconds - length - 1)
            start = GPS + round((start - GPS) * fs) / fs
            strain = torch.from_numpy(read_background(self.path, [ifo], start=start, stop=start + length).strain[ifo])
            psds.append(b.whitener.psd(strain[: b.files.lead]))
            kernels.append(b.whitener.whiten(strain[None, b.files.lead :], psds[-1][None])[0])
        x, y = torch.stack(kernels), torch.zeros(1)
        if float(torch.rand((), generator=rng)) < b.training.waveform_prob + b.training.swap_prob + b.training.mute_prob:
            row = int(torch.randint(SIGNALS, (), generator=rng))
            merger = int((self.config.waveforms.duration - self.config.waveforms.right_pad) * fs)
            with h5py.File(self.signals) as f:
                wave = np.stack(
                    [f["waveforms"][k][row, merger - b.placement.before : merger + b.placement.after] for k in ("cross", "plus")]
                )
            waves = torch.from_numpy(np.pad(wave, ((0, 0), (0, b.placement.size - wave.shape[1])))).float() * STRAIN_SCALE
            x += b.augment.signals(waves[None], torch.stack(psds)[None], b.snrs.sample(1, 0, rng), *b.augment.places(1, rng))[0]
            y += 1
        return x, y


class Bench:
    """One case on one device; every time is seconds for a step."""

    def __init__(self, case: Case, steps: int, device: torch.device, folder: Path) -> None:
        self.config, self.steps, self.device = case.config(steps + 2), steps, device
        self.data = write_data(self.config, folder)
        self.folder = folder
        torch.manual_seed(0)
        self.batches = TrainingBatches(self.config, self.data["background"]["train"], self.data["training_signals"], 0, device)
        self.module = Detector(self.config).to(device)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return cpu_seconds()

    def each(self, work: Callable[[int], Any], count: int) -> float:
        start = self.now()
        for i in range(count):
            work(i)
        return (self.now() - start) / count

    def network(self) -> float:
        """Forward and backward on a resident batch."""
        x, y = self.batches.batch(0)
        self.module.train()

        def step(_: int) -> None:
            self.module.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.model.training.precision == "bf16"):
                loss = self.module.compare(x, self.module.network(x), y)
            loss.backward()

        step(0)
        return self.each(step, self.steps)

    def loop(self) -> float:
        """Lightning's loop with the batches of the experiment, without what a pool costs."""
        t, clock = self.config.model.training, Clock(self.now)
        trainer = lightning.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if t.precision == "bf16" else "32-true",
            max_epochs=1,
            gradient_clip_val=t.gradient_clip,
            callbacks=[clock],
            logger=lightning.pytorch.loggers.CSVLogger(self.folder, flush_logs_every_n_steps=10),
            log_every_n_steps=20,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(Detector(self.config), TrainingData(self.config, **self.data, seed=0))
        return (clock.times[-1] - clock.times[1]) / (len(clock.times) - 2)

    def batch(self) -> dict[str, float]:
        """A batch: all of it, and signals and glitches within."""
        spent = dict.fromkeys(("signals", "glitches"), 0.0)

        def timed(name: str, work: Callable[..., Any], *args: Any) -> Any:
            start = self.now()
            out = work(*args)
            spent[name] += self.now() - start
            return out

        b = self.batches
        parts = {"signals": (b.augment, "signals"), "glitches": (b, "_glitch")}
        for name, (owner, method) in parts.items():
            setattr(owner, method, partial(timed, name, getattr(owner, method)))
        count = 5 * self.steps
        whole = self.each(lambda i: b.batch(i % self.steps), count)
        for owner, method in parts.values():
            delattr(owner, method)
        return {"all": whole} | {k: v / count for k, v in spent.items()}

    def pool(self) -> dict[str, float]:
        """What a pool costs, as a share of each of its steps: reading background, whitening it, reading signals."""
        b, steps = self.batches, REFILL_STEPS
        f: StrainFile = next(iter(b.files.files.values()))
        size = b.files.spent + RUN * b.files.block
        reads = [
            partial(f.read, ifo, i * RUN * b.files.block, i * RUN * b.files.block + size)
            for ifo in self.config.ifos
            for i in range(BLOCKS // RUN)
        ]
        reading = self.each(lambda _: list(read_ahead(reads)), 3)
        drawing = self.each(lambda i: [b.files.draw(ifo, generator_of(i)) for ifo in self.config.ifos], 3)
        w = self.config.waveforms.num_training_signals

        def signals(_: int) -> None:
            b.signals._all = None
            b.signals.draw(generator_of(0))

        # all of them are read once where they fit, else a new part for each pool
        of_signals = self.each(signals, 2) * min(w, MAX_SIGNALS) / SIGNALS if w > MAX_SIGNALS else 0.0
        scale = self.pool_blocks / BLOCKS
        return {"reading": reading * scale / steps, "whitening": max(0.0, drawing - reading) * scale / steps, "signals": of_signals / steps}

    @property
    def pool_blocks(self) -> int:
        """Blocks of a detector in a pool of the preset's own data."""
        s, t = self.config.segments, self.config.model.training
        return min(MAX_BLOCKS, int((s.train_stop - s.train_start - s.min_valid_duration) / t.psd_block))

    def plain(self, samples: int) -> float:
        """A batch from a loader of single samples."""
        batch = self.config.model.training.batch_size
        loader = iter(DataLoader(PlainSamples(self.config, self.data), batch_size=min(batch, samples)))
        next(loader)
        return self.each(lambda _: next(loader), 1) * batch / min(batch, samples)


def measure(name: str, case: Case, steps: int, rounds: int, device: torch.device) -> tuple[list[list[Any]], dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="training-") as scratch:
        bench = Bench(case, steps, device, Path(scratch))
        network, loop, batch, pool = [], [], [], []
        for _ in range(rounds):
            network.append(bench.network())
            loop.append(bench.loop())
            gc.collect()  # a trainer, its network and its data refer to one another
            batch.append(bench.batch())
            pool.append(bench.pool())
        plain = bench.plain(32)
    least = {k: min(b[k] for b in batch) for k in batch[0]}
    data = {k: min(p[k] for p in pool) for k in pool[0]}
    alone, t, a = min(network), bench.config.model.training, bench.config.model.architecture
    full = min(loop) + sum(data.values())
    pieces = {
        "network, both ways": alone,
        "batch: cut, flip, add": least["all"] - least["signals"] - least["glitches"],
        "batch: signals": least["signals"],
        "batch: glitches": least["glitches"],
        "pool: read background": data["reading"],
        "pool: whiten background": data["whitening"],
        "pool: read signals": data["signals"],
    }
    pieces["optimiser and Lightning"] = full - sum(pieces.values())
    title = f"{name}: {'-'.join(map(str, a.layers))} width {a.width}, batch {t.batch_size}, {t.precision}, {device.type}"
    rows: list[list[Any]] = [[title, "", "", ""]]
    rows += [[f"  {k}", f"{1e3 * v:.1f}", f"{100 * v / full:.1f} %", ""] for k, v in pieces.items()]
    rows += [["  a step", f"{1e3 * full:.1f}", f"{full / alone:.3f} of network", f"<= {case.bound:g}"]]
    rows += [["  batch of a plain loader", f"{1e3 * plain:.1f}", f"{plain / (full - alone):.1f} of ours", "shown"]]
    result = {
        "ratio": full / alone,
        "bound": case.bound,
        "step_s": full,
        "network_s": alone,
        "windows_per_s": t.batch_size / full,
        "plain_ratio": (alone + plain) / alone,
        "pieces_s": pieces,
        "rounds": [[n, x] for n, x in zip(network, loop, strict=True)],
    }
    if device.type == "cuda":
        result["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return rows, result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n\n")[1])
    parser.add_argument("--json", action="store_true", help="one line of JSON: ratio is the first case's step over its network alone")
    parser.add_argument("--case", help=f"of {', '.join([*CASES, *ON_GPU])}, comma-separated (default: what this machine has a device for)")
    parser.add_argument("--steps", type=int, default=6, help="steps of a round (default 6)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    a = parser.parse_args(argv)
    gpu = torch.cuda.is_available()
    known = CASES | (ON_GPU if gpu else {})
    names = a.case.split(",") if a.case else list(known)
    unknown = [n for n in names if n not in known]
    if unknown or a.steps < 1 or a.rounds < 1:
        parser.error(
            f"--case {', '.join(unknown)}: expected some of {', '.join(known)}" if unknown else "--steps and --rounds: expected at least 1"
        )
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows, results = [], {}
    for name in names:
        device = torch.device("cuda" if name in ON_GPU else "cpu")
        more, results[name] = measure(name, known[name], a.steps, a.rounds, device)
        rows += more
    notes = [f"Pools are scaled from {BLOCKS} blocks of a detector and {SIGNALS} signals, and shared by {REFILL_STEPS} steps."]
    if not gpu:
        notes.append("No GPU was there (torch.cuda.is_available() is False), so no row shows one.")
    show(
        "A step of training, milliseconds (CPU time, one thread; on a GPU elapsed)",
        ["", "ms", "share", "wanted"],
        rows,
        {"ratio": results[names[0]]["ratio"], "cases": results},
        a.json,
        notes,
    )


if __name__ == "__main__":
    main()
