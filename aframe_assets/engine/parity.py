"""Does an engine answer as the torch model does? Measured on noise and on signals and glitches in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

    from aframe_assets.engine.engine import Engine
    from aframe_assets.engine.signature import Signature

EXPORT_TOLERANCE = 1e-3
"""Largest accepted difference of logits between an exported file and the network it was made from."""

_SIZES = (1, 3, 32)
"""Batch sizes that are tried: an exporter may have frozen one."""

_BLOCK_SIZES = (1, 3)
"""The same for blocks of frames or maps, each of which holds many windows."""


@dataclass(frozen=True)
class Parity:
    """Largest and root-mean-square difference of logits, the spread of the logits themselves, and the number of windows."""

    max_difference: float
    rms_difference: float
    logit_std: float
    windows: int
    tolerance: float

    @property
    def passed(self) -> bool:
        # a NaN difference is no agreement
        return bool(self.max_difference <= self.tolerance)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def probes(num_ifos: int, kernel: int, sample_rate: float, num: int = 96, seed: int = 0) -> np.ndarray:
    """Windows like those of a search (num, ifo, kernel) float32.

    In turn: white noise; noise with a rising chirp in all detectors at network SNR 5 to 100; noise with a glitch of up to
    100 sigma in one detector; and, last, a window of zeros (padding).
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num, num_ifos, kernel))
    t = np.arange(kernel) / sample_rate
    for i in range(num):
        when = rng.uniform(0.2, 0.95) * t[-1]
        if i % 3 == 1:
            to_go = np.maximum(when - t, 1 / sample_rate)
            phase = rng.uniform(20, 60) * to_go ** (5 / 8) * 2 * np.pi
            wave = np.where(t < when, to_go ** (-1 / 4) * np.sin(phase), 0.0) * np.exp(-np.maximum(0.2 - t, 0) / 0.05)
            x[i] += wave / np.linalg.norm(wave) * np.geomspace(5, 100, num)[i] / np.sqrt(num_ifos)
        elif i % 3 == 2:
            width, frequency = rng.uniform(0.002, 0.05), rng.uniform(30, 400)
            x[i, i % num_ifos] += np.geomspace(3, 100, num)[i] * np.exp(-(((t - when) / width) ** 2)) * np.sin(2 * np.pi * frequency * t)
    x[-1] = 0
    return x.astype(np.float32)


def compare(
    engine: Callable[[np.ndarray], np.ndarray], reference: Callable[[np.ndarray], np.ndarray], windows: np.ndarray, tolerance: float
) -> Parity:
    """Parity of two maps from windows to logits (batch,), over batches of several sizes.

    Args:
        engine, reference: (batch, ifo, kernel) float32 -> (batch,).
        windows: as `probes` gives.
        tolerance: largest accepted difference.
    """
    wanted = _in_pieces(reference, windows, 32)
    return _parity([_in_pieces(engine, windows, n) for n in _SIZES], wanted, tolerance)


def compare_engine(engine: Engine, reference: Callable[[np.ndarray], np.ndarray], tolerance: float) -> Parity:
    """Parity of an engine with the network it was made from, in its windowed form and in its cheapest one.

    Frames and maps are turned into the logits of windows by the head; the windows they stand for are cut out and given to
    `reference`, so that this also holds the network to its promise that a frame does not depend on the window.

    Args:
        engine: with its head.
        reference: windows (batch, ifo, window) float32 -> logits (batch,).
        tolerance: largest accepted difference.
    """
    s = engine.signature
    windows = probes(len(s.ifos), s.window, s.sample_rate)
    found = [compare(engine.score_windows, reference, windows, tolerance)]
    if s.form != "windows":
        pieces = -(-s.kernel // s.block) + 1
        streams = probes(len(s.ifos), pieces * s.block + 2 * s.context, s.sample_rate, 4, seed=1)
        hop = -(-(s.block // 8) // s.total_stride) * s.total_stride
        cut = np.lib.stride_tricks.sliding_window_view(streams, s.window, axis=-1)[:, :, ::hop].swapaxes(1, 2)
        wanted = np.stack([_in_pieces(reference, np.ascontiguousarray(c), 32) for c in cut])
        found.append(_parity([stream_logits(engine, streams, hop, n) for n in _BLOCK_SIZES], wanted, tolerance))
    worst = max(found, key=lambda p: np.inf if np.isnan(p.max_difference) else p.max_difference)
    rms = float(np.sqrt(sum(p.rms_difference**2 * p.windows for p in found) / sum(p.windows for p in found)))
    return Parity(worst.max_difference, rms, found[0].logit_std, sum(p.windows for p in found), worst.tolerance)


def stream_logits(engine: Engine, streams: np.ndarray, hop: int, batch: int) -> np.ndarray:
    """Logits of the windows in `streams` by way of frames or maps.

    Args:
        engine: of form 'frames' or 'maps'.
        streams: float32 (n, ifo, m block + 2 context), whole m.
        hop: samples between windows, a multiple of the total stride.
        batch: blocks given to `engine.infer` at a time.

    Returns:
        float64 (n, (m block - kernel) // hop + 1).
    """
    import torch

    s = engine.signature
    count = (streams.shape[-1] - 2 * s.context) // s.block
    blocks = np.stack([streams[..., i * s.block : (i + 1) * s.block + 2 * s.context] for i in range(count)])
    answers = _in_pieces(engine.infer, blocks.reshape(-1, *blocks.shape[2:]), batch)
    parts = torch.from_numpy(answers.reshape(count, len(streams), *answers.shape[1:]))
    head: nn.Module = engine.head
    with torch.inference_mode():
        frames = torch.cat(list(parts), -1) if s.form == "frames" else head.combine(_joined(parts, s).unbind(1))
        return head.slide(frames, s.kernel // s.stride, hop // s.stride).double().numpy()


def _joined(parts: Sequence[torch.Tensor], signature: Signature) -> torch.Tensor:
    """Maps of blocks that follow each other as one: each begins with the frames that the one before it ended with."""
    import torch

    shared = parts[0].shape[-1] - signature.block // signature.stride
    return torch.cat([parts[0], *(p[..., shared:] for p in parts[1:])], -1)


def _in_pieces(answer: Callable[[np.ndarray], np.ndarray], x: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([answer(x[i : i + size]) for i in range(0, len(x), size)])


def _parity(answers: Sequence[np.ndarray], wanted: np.ndarray, tolerance: float) -> Parity:
    wanted = wanted.astype(np.float64)
    differences = np.stack(answers).astype(np.float64) - wanted
    return Parity(
        float(np.abs(differences).max()), float(np.sqrt((differences**2).mean())), float(wanted.std()), wanted.size, float(tolerance)
    )
