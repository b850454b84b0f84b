"""The factorised network: each detector is encoded alone into a map in time, and a small head joins the maps at physical lags.

A slide moves one detector's map against the other's, so it costs the head alone (reference fast-timeslides).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from aframe_assets.model.resnet import Trunk
from aframe_assets.model.streaming import Pooling, pool_windows


class Encoder(Trunk):
    """One detector's strain -> features at `stride` samples a frame; coarser stages are repeated and added to finer ones.

    Args:
        layers, width, kernel_size, stem_kernel, stem_stride: see `Trunk`.
        channels: of the features.
        stride: samples per frame, that of one of the stages.
    """

    def __init__(
        self, layers: Sequence[int], width: int, kernel_size: int, stem_kernel: int, stem_stride: int, channels: int, stride: int
    ) -> None:
        super().__init__(1, layers, width, nn.BatchNorm1d, kernel_size, stem_kernel, stem_stride)
        self.draw_weights()
        strides = [stem_stride * 2 * 2**i for i in range(len(layers))]
        if stride not in strides:
            raise ValueError(f"model.architecture.lag_head.map_stride = {stride}: expected the stride of a stage, one of {strides}")
        self.first = strides.index(stride)
        self.lateral = nn.ModuleList([nn.Conv1d(width * 2**i, channels, 1) for i in range(self.first, len(layers))])
        self.smooth = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, 1, time); returns (batch, channels, time / stride)."""
        features = self.stages(x)[self.first :]
        out = self.lateral[-1](features[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(features[:-1]), strict=True):
            out = out.repeat_interleave(2, -1) + lateral(finer)
        return torch.relu(self.norm(self.smooth(out)))


class MapNet(nn.Module):
    """Encoders, similarities of every pair of detectors at every lag that light allows, and a head over the kernel's frames.

    A detector's map holds, for each frame, `channels` features to be compared and `hidden` that stand for the detector alone.
    The similarity of a group of features q at a lag is sum(q_i q_j); 'cosine' first divides each group by sqrt(1 + |q|^2), so
    that a loud glitch cannot outweigh everything: it tends to the cosine for loud features and to the product for quiet ones.

    Args:
        num_ifos: detectors.
        encoder: settings of `Encoder`.
        shared: one encoder for all detectors.
        groups, hidden: similarities at a lag; channels of a joined frame.
        similarity: 'product' or 'cosine'.
        lags: frames of lag on each side for each pair of detectors, in the order of itertools.combinations.
        pooling: over the kernel's frames.
        context: samples on each side of the kernel, a multiple of the total stride.

    Raises:
        ValueError: `channels` do not divide into groups, or not one lag for each pair.
    """

    def __init__(
        self,
        num_ifos: int,
        encoder: Mapping[str, object],
        *,
        shared: bool,
        groups: int,
        hidden: int,
        similarity: Literal["product", "cosine"],
        lags: Sequence[int],
        pooling: Pooling,
        context: int,
    ) -> None:
        super().__init__()
        channels, self.stride = int(encoder["channels"]), int(encoder["stride"])
        self.pairs = list(combinations(range(num_ifos), 2))
        if channels % groups:
            raise ValueError(f"model.architecture.lag_head.groups = {groups}: expected a number that divides channels {channels}")
        if len(lags) != len(self.pairs):
            raise ValueError(f"{len(lags)} lags; expected one for each of {len(self.pairs)} pairs of {num_ifos} detectors")
        self.num_ifos, self.channels, self.groups, self.similarity = num_ifos, channels, groups, similarity
        self.lags, self.pooling, self.context = list(lags), pooling, context
        self.total_stride = int(encoder["stem_stride"]) * 2 * 2 ** (len(encoder["layers"]) - 1)
        self.encoders = nn.ModuleList([Encoder(**encoder) for _ in range(1 if shared else num_ifos)])
        self.query = nn.Conv1d(channels, channels, 1)
        self.single = nn.ModuleList([nn.Conv1d(channels, hidden, 1, bias=i == 0) for i in range(num_ifos)])
        self.mix = nn.Conv1d(sum(groups * (2 * lag + 1) for lag in lags), hidden, 1, bias=False) if lags else None
        pooled = hidden * (2 if pooling == "mean_max" else 1)
        self.head = nn.Sequential(nn.Linear(pooled, pooled), nn.ReLU(), nn.Linear(pooled, 1))

    @property
    def reach(self) -> int:
        """Frames of the maps on each side of those that `combine` gives."""
        return max(self.lags, default=0)

    def encode(self, x: Tensor) -> Tensor:
        """(batch, ifo, time + 2 context) -> maps (batch, ifo, channels + hidden, time / stride + 2 reach)."""
        batch, ifos, _ = x.shape
        if len(self.encoders) == 1:
            features = self.encoders[0](x.reshape(batch * ifos, 1, -1)).unflatten(0, (batch, ifos))
        else:
            features = torch.stack([encoder(x[:, i : i + 1]) for i, encoder in enumerate(self.encoders)], 1)
        crop = self.context // self.stride - self.reach
        features = features[..., crop : features.shape[-1] - crop]
        return torch.stack(
            [torch.cat([self._bounded(self.query(f)), s(f)], 1) for f, s in zip(features.unbind(1), self.single, strict=True)], 1
        )

    def _bounded(self, query: Tensor) -> Tensor:
        if self.similarity == "product":
            return query
        q = query.unflatten(1, (self.groups, -1))
        return (q * torch.rsqrt(1 + q.square().sum(2, keepdim=True))).flatten(1, 2)

    def combine(self, maps: Sequence[Tensor]) -> Tensor:
        """Joined frames.

        Args:
            maps: for each detector (batch, channels + hidden, frame + 2 reach).

        Returns:
            (batch, hidden, frame).
        """
        reach, size = self.reach, maps[0].shape[-1] - 2 * self.reach
        total = sum(m[:, self.channels :, reach : reach + size] for m in maps)
        if self.mix is None:
            return torch.relu(total)
        queries = [m[:, : self.channels].unflatten(1, (self.groups, -1)) for m in maps]
        similar = []
        for (i, j), lag in zip(self.pairs, self.lags, strict=True):
            here = queries[i][..., reach : reach + size]
            similar += [(here * queries[j][..., reach + k : reach + k + size]).sum(2) for k in range(-lag, lag + 1)]
        return torch.relu(self.mix(torch.cat(similar, 1)) + total)

    def slide(self, frames: Tensor, size: int, hop: int) -> Tensor:
        """(batch, hidden, frame) -> logits (batch, n) of windows of `size` frames, `hop` apart, n = (frame - size) // hop + 1."""
        return self.head(pool_windows(frames, size, hop, self.pooling).transpose(1, 2))[..., 0]

    def frames(self, x: Tensor) -> Tensor:
        """(batch, ifo, time + 2 context) -> joined frames (batch, hidden, time / stride)."""
        return self.combine(self.encode(x).unbind(1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, num_ifos, kernel + 2 context), whitened strain of unit variance; returns logits (batch, 1)."""
        z = self.frames(x)
        return self.slide(z, z.shape[-1], 1)
