"""Does an engine answer as the network in torch does? Logits, their ranks, and the events found, on noise, signals and glitches."""

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

RANK_FLOOR = 0.99
"""Least accepted rank correlation of the logits of an engine with those of the network."""

RATE = 4.0
"""Windows per second, at most, that the probe streams are scored at."""

_SIZES = (1, 3, 32)
"""Batch sizes that are tried: an exporter may have frozen one."""

_BLOCK_SIZES = (1, 3)
"""The same for blocks of frames or maps, each of which holds many windows."""

_SECONDS = 16.0
"""Of a probe stream, at least."""

_TOGETHER = 4
"""Windows on each side of an event of a probe stream in which there is no other, and which are integrated."""

Answer = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Parity:
    """How far two networks are apart.

    Attributes:
        max_difference, rms_difference: of logits.
        rank_correlation: Spearman's, the least over the probes; 1 where every logit is the same in both.
        events, events_lost: louder than the threshold in one of the two, and those among them that the other has not.
        logit_std: spread of the reference's logits.
        windows: compared.
        tolerance: largest accepted difference.
        rank_floor: least accepted rank correlation.
    """

    max_difference: float
    rms_difference: float
    rank_correlation: float
    events: int
    events_lost: int
    logit_std: float
    windows: int
    tolerance: float
    rank_floor: float = RANK_FLOOR

    @property
    def passed(self) -> bool:
        # a NaN difference or correlation is no agreement
        return bool(self.max_difference <= self.tolerance and self.rank_correlation >= self.rank_floor and not self.events_lost)

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


def compare(engine: Answer, reference: Answer, windows: np.ndarray, tolerance: float, rank_floor: float = RANK_FLOOR) -> Parity:
    """Parity of two maps from windows to logits (batch,), over batches of several sizes; no events, for windows are no stream.

    Args:
        engine, reference: (batch, ifo, kernel) float32 -> (batch,).
        windows: as `probes` gives.
        tolerance, rank_floor: see `Parity`.
    """
    wanted = _in_pieces(reference, windows, 32)
    return _parity([_in_pieces(engine, windows, n) for n in _SIZES], wanted, tolerance, rank_floor)


def compare_engine(engine: Engine, reference: Answer, tolerance: float, rank_floor: float = RANK_FLOOR) -> Parity:
    """Parity of an engine with the network it was made from, in its windowed form and in its cheapest one.

    Streams are scored as in a search: frames and maps are turned into the logits of windows by the head. The windows they stand for
    are cut out and given to `reference`, so that this also holds the network to its promise that a frame does not depend on the window.

    Args:
        engine: with its head.
        reference: windows (batch, ifo, window) float32 -> logits (batch,).
        tolerance, rank_floor: see `Parity`.
    """
    s = engine.signature
    single = compare(engine.score_windows, reference, probes(len(s.ifos), s.window, s.sample_rate), tolerance, rank_floor)
    block = s.block or max(1, round(s.sample_rate))
    count = max(-(-s.kernel // block) + 1, round(_SECONDS * s.sample_rate / block))
    streams = _streams(len(s.ifos), count * block + 2 * s.context, s.sample_rate)
    step = s.total_stride or 1
    hop = -(-round(s.sample_rate / RATE) // step) * step
    cut = np.lib.stride_tricks.sliding_window_view(streams, s.window, axis=-1)[:, :, ::hop].swapaxes(1, 2)
    if s.form == "windows":
        found = [np.stack([_in_pieces(engine.infer, np.ascontiguousarray(c), 32) for c in cut])]
    else:
        found = [stream_logits(engine, streams, hop, n) for n in _BLOCK_SIZES]
    wanted = np.stack([_in_pieces(reference, np.ascontiguousarray(c), 32) for c in cut])
    streamed = _parity(found, wanted, tolerance, rank_floor)
    events, lost = _events(found[0], wanted, tolerance)
    both = single, streamed
    return Parity(
        # unlike max(), numpy keeps a NaN
        float(np.max([p.max_difference for p in both])),
        float(np.sqrt(np.average([p.rms_difference**2 for p in both], weights=[p.windows for p in both]))),
        float(np.min([p.rank_correlation for p in both])),
        events,
        lost,
        single.logit_std,
        sum(p.windows for p in both),
        tolerance,
        rank_floor,
    )


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


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two series; 1 when neither varies, NaN when one alone does not or holds a NaN."""
    from scipy.stats import rankdata

    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    x, y = rankdata(a), rankdata(b)
    flat = not np.ptp(x), not np.ptp(y)
    if all(flat):
        return 1.0
    return float("nan") if any(flat) else float(np.corrcoef(x, y)[0, 1])


def _events(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> tuple[int, int]:
    """Events of both, and those that are in one alone.

    An event is the largest of the integrated logits within _TOGETHER windows, above their upper quartile. One that is louder than
    that by more than `tolerance` must be in the other too, as loud but for `tolerance`, and no farther away than two that exclude each
    other: where the logits are flat, rounding decides which is the largest.
    """
    threshold = float(np.quantile(_integrated(wanted), 0.75))
    peaks = [[_peaks(row, threshold) for row in _integrated(x)] for x in (found, wanted)]
    total = sum(len(p) for p in peaks[1])
    lost = 0
    for mine, other in (peaks, peaks[::-1]):
        for a, b in zip(mine, other, strict=True):
            found_too = [any(abs(at - k) <= 2 * _TOGETHER and abs(loud - o) <= tolerance for k, o in b.items()) for at, loud in a.items()]
            lost += sum(loud > threshold + tolerance and not known for loud, known in zip(a.values(), found_too, strict=True))
    return total, lost


def _integrated(logits: np.ndarray) -> np.ndarray:
    """Means of _TOGETHER windows, (n, windows - _TOGETHER + 1)."""
    sums = np.cumsum(np.pad(logits.astype(np.float64), ((0, 0), (1, 0))), axis=1)
    return (sums[:, _TOGETHER:] - sums[:, :-_TOGETHER]) / _TOGETHER


def _peaks(row: np.ndarray, threshold: float) -> dict[int, float]:
    around = np.lib.stride_tricks.sliding_window_view(np.pad(row, _TOGETHER, constant_values=-np.inf), 2 * _TOGETHER + 1)
    return {int(k): float(row[k]) for k in np.flatnonzero((row >= around.max(axis=1)) & (row > threshold))}


def _streams(num_ifos: int, samples: int, sample_rate: float, num: int = 4) -> np.ndarray:
    """Probes of 2 s each, end to end (num, ifo, samples)."""
    size = round(2 * sample_rate)
    many = -(-samples // size)
    parts = probes(num_ifos, size, sample_rate, num * many, seed=1).reshape(many, num, num_ifos, size)
    return np.ascontiguousarray(parts.transpose(1, 2, 0, 3).reshape(num, num_ifos, -1)[..., :samples])


def _joined(parts: Sequence[torch.Tensor], signature: Signature) -> torch.Tensor:
    """Maps of blocks that follow each other as one: each begins with the frames that the one before it ended with."""
    import torch

    shared = parts[0].shape[-1] - signature.block // signature.stride
    return torch.cat([parts[0], *(p[..., shared:] for p in parts[1:])], -1)


def _in_pieces(answer: Answer, x: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([answer(x[i : i + size]) for i in range(0, len(x), size)])


def _parity(answers: Sequence[np.ndarray], wanted: np.ndarray, tolerance: float, rank_floor: float) -> Parity:
    wanted = wanted.astype(np.float64)
    differences = np.stack(answers).astype(np.float64) - wanted
    return Parity(
        float(np.abs(differences).max()),
        float(np.sqrt((differences**2).mean())),
        float(np.min([spearman(a.ravel(), wanted.ravel()) for a in answers])),
        0,
        0,
        float(wanted.std()),
        wanted.size,
        float(tolerance),
        float(rank_floor),
    )
