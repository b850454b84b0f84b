"""The residual network of reference 2.9, and the trunk that it shares with the networks that stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from ml4gw.nn.resnet.resnet_1d import BasicBlock, conv1
from torch import Tensor, nn


class GroupNorm(nn.Module):
    """Group normalisation with the parameters of ml4gw's ``GroupNorm1D``, computed by torch's own kernel.

    ml4gw's form is the faster one on a GPU at inference; on a CPU torch's is 1.6 times faster, and training needs
    a backward pass (measured: 252 against 436 ms for a batch of 128, width 16, 3072 samples).

    Args:
        num_channels: channels of the input.
        num_groups: wanted groups, at most one per channel (reference 2.9: min(16, channels)).

    Raises:
        ValueError: channels do not divide into groups.
    """

    def __init__(self, num_channels: int, num_groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = min(num_groups, num_channels)
        if num_channels % self.num_groups:
            raise ValueError(f"{num_channels} channels do not divide into {self.num_groups} groups; change model.architecture.norm_groups")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels, 1))
        self.bias = nn.Parameter(torch.zeros(num_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.group_norm(x, self.num_groups, self.weight.squeeze(-1), self.bias.squeeze(-1), self.eps)


class Trunk(nn.Module):
    """A strided convolution, norm, ReLU and max pooling; stages of basic blocks of ml4gw.

    Each stage is twice as wide as the one before and, from the second on, half as long.

    Args:
        in_channels: of the input.
        layers: basic blocks of each stage.
        width: channels of the first stage.
        norm: makes the norm of a number of channels.
        kernel_size: of the convolutions in the blocks, odd.
        stem_kernel, stem_stride: of the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        layers: Sequence[int],
        width: int,
        norm: Callable[[int], nn.Module],
        kernel_size: int = 3,
        stem_kernel: int = 7,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, width, stem_kernel, stem_stride, stem_kernel // 2, bias=False)
        self.bn1 = norm(width)
        self.maxpool = nn.MaxPool1d(kernel_size=3, stride=2, padding=1)
        stages, channels = [], width
        for stage, blocks in enumerate(layers):
            planes, parts = width * 2**stage, []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                shortcut = nn.Sequential(conv1(channels, planes, stride), norm(planes)) if stride != 1 or channels != planes else None
                parts.append(BasicBlock(channels, planes, kernel_size, stride, shortcut, norm_layer=norm))
                channels = planes
            stages.append(nn.Sequential(*parts))
        self.residual_layers = nn.ModuleList(stages)
        self.out_channels = channels

    def draw_weights(self) -> None:
        """First weights of the convolutions; a network calls it last, so that one seed gives one network."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> list[Tensor]:
        """x: (batch, in_channels, time); the features of each stage (batch, channels, frames)."""
        x, out = self.maxpool(torch.relu(self.bn1(self.conv1(x)))), []
        for stage in self.residual_layers:
            x = stage(x)
            out.append(x)
        return out


class ResNet1D(Trunk):
    """Residual network on whitened strain (reference 2.9): trunk with group norms, pooling over time, one linear layer.

    With width 64, layers [3, 4, 6, 3] and the default stem its parameters have the names and shapes of Aframe's network.
    Its norms look at the whole window, so it must be run anew for every window.

    Args:
        num_ifos: detectors, the input's channels.
        layers, width, kernel_size, stem_kernel, stem_stride: see `Trunk`.
        norm_groups: groups of every norm, at most one per channel.
        pooling: 'mean' over time as the reference, or 'mean_max': mean and maximum side by side, which lets a
            loud merger score above everything else.
    """

    def __init__(
        self,
        num_ifos: int,
        layers: Sequence[int],
        width: int = 64,
        kernel_size: int = 3,
        norm_groups: int = 16,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        pooling: Literal["mean", "mean_max"] = "mean",
    ) -> None:
        def norm(channels: int) -> nn.Module:
            return GroupNorm(channels, norm_groups)

        super().__init__(num_ifos, layers, width, norm, kernel_size, stem_kernel, stem_stride)
        self.pooling = pooling
        self.fc = nn.Linear(self.out_channels * (2 if pooling == "mean_max" else 1), 1)
        self.draw_weights()

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, num_ifos, time), whitened strain of unit variance; returns logits (batch, 1)."""
        x = self.stages(x)[-1]
        pooled = x.mean(-1)
        return self.fc(torch.cat([pooled, x.amax(-1)], 1) if self.pooling == "mean_max" else pooled)
