"""Diagonal state spaces (S4D) as a detector: ml4gw's parameters and layers, computed without FFTs.

An S4D layer is a convolution with a kernel as long as the data (Gu, Gupta, Goel & Re 2022, arXiv:2206.11893, equations 2, 3 and 6).
ml4gw multiplies spectra; portable formats have no complex numbers, and ONNX Runtime's DFT took ten times as long as the rest of
such a network. Here the sum is cut into chunks: within a chunk it is a product with a small Toeplitz matrix, and what earlier
chunks leave behind is the state at the chunk's start (the same split as in Dao & Gu 2024, arXiv:2405.21060, section 6). It is the
same sum, all in real products, and its cost grows with the length and not with its square.
"""

from __future__ import annotations

import torch
from ml4gw.nn.ssm.s4d import S4D, S4Model
from torch import Tensor, nn

from aframe_assets.model.streaming import Pooling

CHUNK = 64
"""Frames of a chunk; of the order of the state's size, where the two parts of the work are about equal."""


class ChunkedS4D(S4D):
    """ml4gw's layer, names of weights included; see the module's text for what differs.

    Args:
        width: channels, each with a state of its own.
        state: size of a channel's state, even.
        dt_min, dt_max: range of the channels' first steps.
    """

    def __init__(self, width: int, state: int, dt_min: float, dt_max: float) -> None:
        super().__init__(width, d_state=state, dt_min=dt_min, dt_max=dt_max)

    def forward(self, u: Tensor) -> Tensor:
        """(batch, width, frame) -> (batch, width, frame)."""
        return self.output_linear(self.activation(self.convolve(u) + u * self.D.unsqueeze(-1)))

    def convolve(self, u: Tensor) -> Tensor:
        """The causal convolution of each channel with its kernel K_l = 2 Re sum_n c_n w_n**l; (batch, width, frame)."""
        length = u.shape[-1]
        chunks = -(-length // CHUNK)
        x = nn.functional.pad(u, (0, chunks * CHUNK - length)).unflatten(-1, (chunks, CHUNK))
        rate, turn, c_re, c_im = self._modes()
        steps = torch.arange(CHUNK, device=u.device, dtype=rate.dtype)

        def power(exponents: Tensor) -> tuple[Tensor, Tensor]:
            """w_n**exponent, real and imaginary part, (width, n, exponent)."""
            size, angle = torch.exp(rate[..., None] * exponents), turn[..., None] * exponents
            return size * torch.cos(angle), size * torch.sin(angle)

        w_re, w_im = power(steps)
        taps = 2 * (c_re[..., None] * w_re - c_im[..., None] * w_im).sum(1)
        # toeplitz[j, i] = K_(i - j), and zero before
        lag = torch.arange(CHUNK, device=u.device)
        lag = lag[None] - lag[:, None]
        toeplitz = taps[:, lag.clamp(min=0)] * (lag >= 0)
        # what a chunk adds to the state at its end
        into = torch.cat([w_re.flip(-1), w_im.flip(-1)], 1).transpose(1, 2)
        within, left = (x @ torch.cat([toeplitz, into], 2)).split([CHUNK, into.shape[-1]], -1)
        s_re, s_im = left.chunk(2, -1)
        # states at the ends of all chunks: each doubling adds those of twice as many chunks before
        reach = 1
        while reach < chunks:
            d_re, d_im = (p.transpose(1, 2) for p in power(steps.new_tensor([float(CHUNK * reach)])))
            before_re, before_im = (nn.functional.pad(s[..., :-reach, :], (0, 0, reach, 0)) for s in (s_re, s_im))
            s_re, s_im = s_re + d_re * before_re - d_im * before_im, s_im + d_re * before_im + d_im * before_re
            reach *= 2
        # seen i + 1 frames later, by the chunk that follows
        v_re, v_im = power(steps + 1)
        out_re = 2 * (c_re[..., None] * v_re - c_im[..., None] * v_im)
        out_im = -2 * (c_re[..., None] * v_im + c_im[..., None] * v_re)
        state = nn.functional.pad(torch.cat([s_re, s_im], -1)[..., :-1, :], (0, 0, 1, 0))
        y = within + state @ torch.cat([out_re, out_im], 1)
        return y.flatten(-2)[..., :length]

    def _modes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log|w|, arg w, Re c, Im c, each (width, n): w = exp(dt A), c = C (w - 1) / A (zero-order hold)."""
        k = self.kernel
        dt, a_re, a_im = torch.exp(k.log_dt)[:, None], -torch.exp(k.log_A_real), k.A_imag
        rate, turn = dt * a_re, dt * a_im
        size = torch.exp(rate)
        x, y = size * torch.cos(turn) - 1, size * torch.sin(turn)
        # (x + iy) / (a_re + i a_im)
        norm = a_re.square() + a_im.square()
        z_re, z_im = (x * a_re + y * a_im) / norm, (y * a_re - x * a_im) / norm
        c_re, c_im = k.C.unbind(-1)
        return rate, turn, c_re * z_re - c_im * z_im, c_re * z_im + c_im * z_re


class S4Net(S4Model):
    """ml4gw's `S4Model` behind a strided convolution, with logits from the mean (and maximum) over time.

    Without a stem (`stem_stride` 1) its weights have the names and shapes of `S4Model`, and with 'mean' it gives its logits.
    It has no dropout: a batch is never seen twice, and a step must be a function of the seed and the step alone.

    Args:
        num_ifos: detectors, the input's channels.
        layers: S4D layers.
        width: channels.
        state, dt_min, dt_max: see `ChunkedS4D`.
        stem_kernel, stem_stride: of the first convolution; a layer's cost and memory fall with the stride.
        pooling: 'mean', or 'mean_max'.
    """

    def __init__(
        self,
        num_ifos: int,
        layers: int,
        width: int,
        state: int,
        dt_min: float,
        dt_max: float,
        stem_kernel: int,
        stem_stride: int,
        pooling: Pooling,
    ) -> None:
        super().__init__(width if stem_stride > 1 else num_ifos, 1, width, state, layers, 0.0, dt_min, dt_max)
        self.s4_layers = nn.ModuleList([ChunkedS4D(width, state, dt_min, dt_max) for _ in range(layers)])
        self.stem = nn.Conv1d(num_ifos, width, stem_kernel, stem_stride, stem_kernel // 2) if stem_stride > 1 else nn.Identity()
        self.pooling = pooling
        if pooling == "mean_max":
            self.decoder = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, num_ifos, time), whitened strain of unit variance; returns logits (batch, 1)."""
        x = self.encoder(self.stem(x).transpose(1, 2)).transpose(1, 2)
        for layer, norm in zip(self.s4_layers, self.norms, strict=True):
            x = norm((layer(x) + x).transpose(1, 2)).transpose(1, 2)
        pooled = x.mean(-1)
        return self.decoder(torch.cat([pooled, x.amax(-1)], 1) if self.pooling == "mean_max" else pooled)
