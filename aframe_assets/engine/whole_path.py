"""Strain in, logits out: PSD, whitening, windows and network as one graph, or the part before the network alone.

The numbers are those of `aframe_assets.strain.conditioning.Whitener`, which also designs the filter. Three steps are written
for graphs that leave torch: frames of the PSD are cut by slices and their median taken by sorting, the PSD is moved to the filter's
grid by two gathers (ONNX Runtime resizes no float64), and the filter is applied by overlap-save in transforms whose length is a
power of two (ONNX Runtime's are slow at others). All that comes before the whitened strain is float64.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from aframe_assets.engine.export import INPUT, OUTPUT, quiet
from aframe_assets.strain.conditioning import Whitener

if TYPE_CHECKING:
    from aframe_assets.config import Conditioning

STRAIN = "strain"
StrainType = Literal["float64", "float32"]


class Preprocessor(nn.Module):
    """Strain of one stretch -> its whitened windows, whitened with the PSD of the psd_length seconds they are preceded by.

    Attributes:
        samples: of the strain: psd_length, fduration, and windows.
        shape: of the output, (batch, ifo, window).

    Args:
        conditioning: of the model.
        sample_rate: Hz.
        num_ifos: detectors.
        window: samples of a window, kernel and context.
        stride: samples between windows, >= 1.
        batch: windows, >= 1.
        rows: 2 where the PSD is made of other data than those that are whitened, as in a stream of reference 2.10.

    Raises:
        ValueError: no stride or batch, or what `Whitener` refuses.
    """

    def __init__(
        self, conditioning: Conditioning, sample_rate: float, num_ifos: int, window: int, stride: int, batch: int, rows: int = 1
    ) -> None:
        super().__init__()
        if stride < 1 or batch < 1:
            raise ValueError(f"stride of {stride} samples, batch of {batch}: expected at least 1 of each")
        self.whitener = Whitener(conditioning, sample_rate)
        self.window, self.stride, self.shape, self.rows = window, stride, (batch, num_ifos, window), rows
        self.settle = round(conditioning.psd_length * sample_rate)
        self.size = window + (batch - 1) * stride
        self.samples = self.settle + self.size + 2 * self.whitener.crop
        self.frame = int(conditioning.fftlength * sample_rate)
        hann = torch.hann_window(self.frame, dtype=torch.float64)
        # one-sided: all bins but the first and (of an even number of samples) the last stand for two
        scale = torch.full((self.frame // 2 + 1,), 2.0, dtype=torch.float64)
        scale[0] = 1
        if self.frame % 2 == 0:
            scale[-1] = 1
        bins = self.whitener.design_size // 2 + 1
        place = torch.arange(bins, dtype=torch.float64) * ((self.frame // 2) / (bins - 1))
        left = place.floor().clamp(max=self.frame // 2 - 1)
        self.register_buffer("hann", hann, persistent=False)
        self.register_buffer("scale", scale / (sample_rate * (hann**2).sum()), persistent=False)
        self.register_buffer("left", left.long(), persistent=False)
        self.register_buffer("weight", place - left, persistent=False)

    def forward(self, strain: Tensor) -> Tensor:
        """strain: (rows, ifo, samples); returns windows (batch, ifo, window) float32 of the last row, by the PSD of the first."""
        if self.rows == 1:
            white = self._whiten(strain[0].double())
        else:
            white = self._whiten(torch.cat([strain[0, :, : self.settle], strain[-1, :, self.settle :]], -1).double())
        starts = range(0, self.size - self.window + 1, self.stride)
        return torch.stack([white[:, i : i + self.window] for i in starts]).float()

    def _psd(self, x: Tensor) -> Tensor:
        """(ifo, settle) -> (ifo, freq)."""
        step = self.frame - self.frame // 2
        if self.whitener.highpass is not None:
            # as `Whitener.psd`: the mean of the whole stretch touches two bins that the highpass drops
            x = x - x.mean(-1, keepdim=True)
        frames = torch.stack([x[:, i : i + self.frame] for i in range(0, x.shape[-1] - self.frame + 1, step)], 1)
        if self.whitener.highpass is None:
            frames = frames - frames.mean(-1, keepdim=True)
        power = torch.view_as_real(torch.fft.rfft(frames * self.hann)).square().sum(-1)
        many = power.shape[1]
        ordered = torch.sort(power, dim=1).values
        median = (ordered[:, (many - 1) // 2] + ordered[:, many // 2]) / 2
        # of the mean of exponential variables, for the odd number of frames below (Allen et al., gr-qc/0509116, B12)
        bias = 1 + sum(1 / (2 * i + 1) - 1 / (2 * i) for i in range(1, (many - 1) // 2 + 1))
        return median * self.scale / bias

    def _whiten(self, x: Tensor) -> Tensor:
        """(ifo, samples) -> (ifo, size) float64."""
        psd = self._psd(x[:, : self.settle])
        low, high = psd.index_select(-1, self.left), psd.index_select(-1, self.left + 1)
        response = self.whitener.response(low + (high - low) * self.weight)
        crop = self.whitener.crop
        # from time -crop to crop, so that what comes out at 2 crop is the first whitened sample
        taps = torch.cat([response[:, -crop:], response[:, :crop]], -1)
        x = x[:, self.settle :]
        x = x - x.mean(-1, keepdim=True)
        length = 1 << max(8, math.ceil(math.log2(8 * crop)))
        new = length - 2 * crop
        count = -(-self.size // new)
        x = nn.functional.pad(x, (0, (count - 1) * new + length - x.shape[-1]))
        pieces = torch.stack([x[:, i * new : i * new + length] for i in range(count)], 1)
        filtered = torch.fft.irfft(torch.fft.rfft(pieces) * torch.fft.rfft(taps[:, None], n=length), n=length)
        return filtered[..., 2 * crop :].flatten(1)[:, : self.size]


class WholePath(nn.Module):
    """Strain (1, ifo, samples) -> logits (batch, 1).

    Args:
        preprocessor: strain to windows.
        network: windows (batch, ifo, window) to logits (batch, 1).
    """

    def __init__(self, preprocessor: Preprocessor, network: nn.Module) -> None:
        super().__init__()
        self.preprocessor, self.network = preprocessor, network

    def forward(self, strain: Tensor) -> Tensor:
        """See the class."""
        return self.network(self.preprocessor(strain))


def export_path(module: nn.Module, path: Path, strain: StrainType = "float64") -> Path:
    """Write a `Preprocessor` or a `WholePath` as one file.

    Args:
        module: in eval mode; its network with batch norms or without.
        path: ends in .onnx or .pt2 (``torch.export``).
        strain: type of the graph's input. float32 keeps strain of 1e-21, and rounds it at 6e-8 of its largest part.

    Returns:
        `path`. The input is called ``strain``; an ONNX file's output ``discriminator`` for a whole path and ``input_0``, what the
        network calls its input, for a preprocessor.

    Raises:
        ValueError: another ending.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{path}: expected a name that ends in .onnx or .pt2")
    whole = isinstance(module, WholePath)
    first = module.preprocessor if whole else module
    example = torch.zeros(first.rows, first.shape[1], first.samples, dtype=getattr(torch, strain))
    program = torch.export.export(module.eval(), (example,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        return path
    with quiet("torch.onnx"):
        portable = torch.onnx.export(
            program, (example,), dynamo=True, input_names=[STRAIN], output_names=[OUTPUT if whole else INPUT], verbose=False
        )
    portable.save(path, external_data=False)
    return path
