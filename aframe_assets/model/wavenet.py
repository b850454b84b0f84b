"""WaveNet as a detector: dilated convolutions with gates, whose frames do not depend on the window.

The layers are those of van den Oord et al. 2016 (arXiv:1609.03499): gated units (equation 2), residual and skip connections
(figure 4), dilations that double within a block and begin anew in the next (section 2.1). Unlike there a layer looks at both
sides: nothing is predicted, and the merger's ring-down is as telling as its inspiral.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aframe_assets.model.streaming import PooledFrames, Pooling


class GatedLayer(nn.Module):
    """tanh(W_f * x) sigmoid(W_g * x) (equation 2), then a residual for the next layer and a skip for the sum.

    Args:
        width: channels.
        kernel_size: odd.
        dilation: frames between taps.
    """

    def __init__(self, width: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        # filter and gate as one convolution, residual and skip as another: fewer and larger products
        self.gated = nn.Conv1d(width, 2 * width, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation)
        self.out = nn.Conv1d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, width, frame) -> the next layer's input and the skip, both of that shape."""
        signal, gate = self.gated(x).chunk(2, 1)
        residual, skip = self.out(torch.tanh(signal) * torch.sigmoid(gate)).chunk(2, 1)
        return x + residual, skip


class WaveNet(PooledFrames, nn.Module):
    """A strided convolution, blocks of gated layers, and a head on the sum of their skips; it follows `FrameNetwork`.

    It has no norms, so neither the batch nor the window changes a frame. A frame is the mean over `stride` samples.

    Args:
        num_ifos: detectors, the input's channels.
        layers: of each block; layer i has dilation 2**i.
        width: channels of every layer.
        kernel_size: of the gated convolutions, odd.
        stem_kernel, stem_stride: of the first convolution; `stem_kernel` odd.
        pooling: over the kernel's frames, see `pool_windows`.
        context: samples on each side of the kernel, a multiple of the stride, stem_stride * 2**len(layers).
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
        super().__init__()
        self.pooling, self.context, self.averaged = pooling, context, 2 ** len(layers)
        self.stride = self.total_stride = stem_stride * self.averaged
        self.stem = nn.Conv1d(num_ifos, width, stem_kernel, stem_stride, stem_kernel // 2)
        self.layers = nn.ModuleList([GatedLayer(width, kernel_size, 2**i) for block in layers for i in range(block)])
        self.join = nn.Conv1d(width, width, 1)
        self.fc = nn.Linear(width * (2 if pooling == "mean_max" else 1), 1)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def frames(self, x: Tensor) -> Tensor:
        """See `FrameNetwork.frames`."""
        x, total = self.stem(x), None
        for layer in self.layers:
            x, skip = layer(x)
            total = skip if total is None else total + skip
        # so that the sum's size does not grow with depth
        z = torch.relu(self.join(torch.relu(total * len(self.layers) ** -0.5)))
        return self.kernel_frames(nn.functional.avg_pool1d(z, self.averaged))
