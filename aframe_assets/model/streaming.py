"""Networks whose frames do not depend on the window, so that one pass over a stretch serves every window in it.

Their norms are batch norms, their input has real data (context) on both sides of the kernel, and only the frames of the
kernel are pooled. A frame is then the same whatever window it is in: reference fast-timeslides, "Streaming / norm".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from aframe_assets.model.resnet import Trunk

Pooling = Literal["mean", "mean_max"]


class FrameNetwork(Protocol):
    """What streaming needs of a network.

    Attributes:
        stride: samples per frame.
        total_stride: samples by which data must be moved for their frames to move with them.
        context: samples on each side of those whose frames are wanted.
    """

    stride: int
    total_stride: int
    context: int

    def frames(self, x: Tensor) -> Tensor:
        """(batch, ifo, time + 2 context) -> (batch, channels, time / stride); time is a multiple of `total_stride`."""
        ...

    def slide(self, frames: Tensor, size: int, hop: int) -> Tensor:
        """(batch, channels, frame) -> logits (batch, n) of windows of `size` frames, `hop` apart, n = (frame - size) // hop + 1."""
        ...


def pool_windows(x: Tensor, size: int, hop: int, pooling: Pooling) -> Tensor:
    """Mean, and maximum if asked for, over windows of frames.

    Frames are first pooled in pieces that windows share, so that the cost does not grow with the overlap.

    Args:
        x: (batch, channels, frame).
        size, hop: frames of a window and between windows.
        pooling: 'mean' or 'mean_max'.

    Returns:
        (batch, channels or twice as many, n), n = (frame - size) // hop + 1.
    """
    piece = math.gcd(size, hop)
    many, step = size // piece, hop // piece
    mean = nn.functional.avg_pool1d(nn.functional.avg_pool1d(x, piece), many, step)
    if pooling == "mean":
        return mean
    return torch.cat([mean, nn.functional.max_pool1d(nn.functional.max_pool1d(x, piece), many, step)], 1)


class PooledFrames:
    """What networks of frames have in common whose logit is that of one linear layer, `fc`, of a window's pooled frames.

    Beside those of `FrameNetwork` it reads the attributes `fc` and `pooling`.
    """

    def kernel_frames(self, z: Tensor) -> Tensor:
        """Of all frames those of the kernel: without those of the context."""
        crop = self.context // self.stride
        return z[..., crop : z.shape[-1] - crop]

    def slide(self, frames: Tensor, size: int, hop: int) -> Tensor:
        """See `FrameNetwork.slide`."""
        return self.fc(pool_windows(frames, size, hop, self.pooling).transpose(1, 2))[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, num_ifos, kernel + 2 context), whitened strain of unit variance; returns logits (batch, 1)."""
        z = self.frames(x)
        return self.slide(z, z.shape[-1], 1)


class StreamingNet(PooledFrames, Trunk):
    """The joint network on all detectors, in streaming form.

    Args:
        num_ifos: detectors, the input's channels.
        layers, width, kernel_size, stem_kernel, stem_stride: see `Trunk`.
        pooling: over the kernel's frames, see `pool_windows`.
        context: samples on each side of the kernel, a multiple of the total stride.
    """

    def __init__(
        self,
        num_ifos: int,
        layers: Sequence[int],
        width: int,
        kernel_size: int,
        stem_kernel: int,
        stem_stride: int,
        pooling: Pooling,
        context: int,
    ) -> None:
        super().__init__(num_ifos, layers, width, nn.BatchNorm1d, kernel_size, stem_kernel, stem_stride)
        self.pooling, self.context = pooling, context
        self.stride = self.total_stride = stem_stride * 2 * 2 ** (len(layers) - 1)
        self.fc = nn.Linear(self.out_channels * (2 if pooling == "mean_max" else 1), 1)
        self.draw_weights()

    def frames(self, x: Tensor) -> Tensor:
        """See `FrameNetwork.frames`."""
        return self.kernel_frames(self.stages(x)[-1])
