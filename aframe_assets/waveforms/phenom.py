"""Spectra of many binaries at once: TaylorF2, IMRPhenomD and IMRPhenomPv2 on any torch device, float64.

The phase of each region of these models is a sum of powers of frequency (and of its logarithm) with coefficients of
the binary (`phenom_coefficients`). So the coefficients are made once for all binaries, and the phases of a batch are
one matrix product with the powers of the frequencies; only what is not a power (the arctangent and the Lorentzian of
the ringdown, the opening angle of precession) is computed element by element, and only at the frequencies of its region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from ml4gw.constants import MPC_SEC, MTSUN_SI
from torch import Tensor

from aframe_assets.waveforms.phenom_coefficients import LOGS, POWERS, add, matrix, phenom_d, taylorf2_phase, value

PI = math.pi
MF_CUT = 0.2
"""Highest G M f / c^3 of the IMRPhenomD family, as in lalsimulation."""


@dataclass
class Spectra:
    """Coefficients of the binaries of one call, ready to be evaluated in batches.

    Attributes:
        approximant: 'TaylorF2', 'IMRPhenomD' or 'IMRPhenomPv2'.
        tensors: by name, each (n, ...), on the device.
    """

    approximant: str
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, approximant: str, source: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Spectra:
        """Coefficients of binaries.

        Args:
            approximant: which model.
            source: float64 on the CPU, each (n,): mass_1 >= mass_2 (solar masses, detector frame), distance (Mpc), phase
                and inclination (radians), f_ref (Hz), s1x ... s2z (dimensionless, in LAL's frame at f_ref).
            device: where the spectra will be made.
        """
        mass = (source["mass_1"] + source["mass_2"]) * MTSUN_SI
        m1 = source["mass_1"] * MTSUN_SI / mass
        m2 = 1 - m1
        # arXiv:1508.07253 eq. 2 for a binary seen face-on; the spherical harmonics of IMRPhenomPv2 hold the factor of pi
        out = {"scale": torch.sqrt(2 / 3 * m1 * m2) * PI ** (-1 / 6) * mass ** (5 / 6) / (source["distance"] * MPC_SEC)}
        # h_plus and h_cross of the dominant harmonic
        cosine = torch.cos(source["inclination"])
        out["plus"], out["cross"] = (1 + cosine**2) / 2 * math.sqrt(5 / (16 * PI)), cosine * math.sqrt(5 / (16 * PI))
        if approximant == "TaylorF2":
            phase = taylorf2_phase(m1, m2, source["s1z"], source["s2z"], True)
            offset = -value(phase, mass * source["f_ref"]) - 2 * source["phase"] + 3 / 4 * PI
            out["phase"] = matrix(add(phase, {(0.0, 0): offset}), mass)
        else:
            out |= phenom_d(approximant, mass, m1, m2, source)
        return cls(approximant, {k: v.to(device) for k, v in out.items()})

    @staticmethod
    def highest_frequency(approximant: str, total: Tensor) -> Tensor:
        """Hz above which the model is zero: the innermost stable orbit, or `MF_CUT`; `total` in solar masses."""
        return (6**-1.5 / PI if approximant == "TaylorF2" else MF_CUT) / (total * MTSUN_SI)

    def __call__(self, rows: Tensor, grid: Grid, delay: Tensor) -> tuple[Tensor, ...]:
        """Spectra of the binaries `rows` at the grid's frequencies, shifted by `delay` seconds (rows,) to earlier times.

        Returns:
            (cross, plus), complex (rows, frequencies), per Hz; for a model without precession the one spectrum h, with
            h_plus = plus * h and h_cross = -i cross * h (`tensors`).
        """
        t = {k: v[rows] for k, v in self.tensors.items()}
        if self.approximant == "TaylorF2":
            phases = t["phase"].clone()
            phases[:, POWERS.index(1.0)] -= 2 * PI * delay
            return (torch.polar(t["scale"][:, None] * grid.newtonian, -(phases @ grid.powers)),)
        h = torch.polar(self._amplitude(t, grid), -self._phase(t, grid, delay))
        return _twisted(t, grid, h) if self.approximant == "IMRPhenomPv2" else (h,)

    @staticmethod
    def _phase(t: Mapping[str, Tensor], grid: Grid, delay: Tensor) -> Tensor:
        out = torch.empty(len(t["scale"]), len(grid.frequencies), dtype=torch.float64, device=grid.frequencies.device)
        regions = t["regions"].clone()
        regions[:, :, POWERS.index(1.0)] -= 2 * PI * delay[:, None]
        last = len(grid.frequencies)
        begins, ends = grid.splits(t["phase_joins"])
        for i, (start, stop) in enumerate(((0, ends[0]), (begins[0], ends[1]), (begins[1], last))):
            if start >= stop:
                continue
            made = torch.matmul(regions[:, i], grid.powers[:, start:stop])
            if i == 2:
                x = torch.addcmul(t["atan_offset"][:, None], t["atan_scale"][:, None], grid.row[:, start:stop])
                made += t["alpha4"][:, None] * torch.atan(x)
            _join(out, made, t["phase_joins"], i, start, grid, ends)
        return out

    @staticmethod
    def _amplitude(t: Mapping[str, Tensor], grid: Grid) -> Tensor:
        out = torch.empty(len(t["scale"]), len(grid.frequencies), dtype=torch.float64, device=grid.frequencies.device)
        last = len(grid.frequencies)
        joins = t["amplitude_joins"]
        begins, ends = grid.splits(joins)
        for i, (start, stop) in enumerate(((0, ends[0]), (begins[0], ends[1]), (begins[1], last))):
            if start >= stop:
                continue
            f = grid.row[:, start:stop]
            if i == 0:
                made = torch.matmul(t["inspiral"], grid.powers[:, start:stop])
            elif i == 1:
                # a polynomial of (f - f1) / (f3 - f1)
                x = (f - joins[:, :1]) / (joins[:, 1:] - joins[:, :1])
                made = t["quartic"][:, 4:] * x
                for k in (3, 2, 1):
                    made = (made + t["quartic"][:, k : k + 1]) * x
                made += t["quartic"][:, :1]
            else:
                x = torch.addcmul(t["ring_offset"][:, None], t["ring_scale"][:, None], f)
                made = torch.exp(t["ring_decay"][:, None] * x) / (1 + x * x) * t["ring_height"][:, None]
            _join(out, made, joins, i, start, grid, ends)
        return out.mul_(grid.newtonian).mul_(t["scale"][:, None])


def _join(out: Tensor, made: Tensor, joins: Tensor, region: int, start: int, grid: Grid, ends: list[int]) -> None:
    """Write region `region` (0, 1, 2), evaluated from column `start`, over the one before where it has begun."""
    stop = start + made.shape[1]
    if region == 0:
        out[:, :stop] = made
        return
    shared = max(start, min(ends[region - 1], stop))
    begun = grid.row[:, start:shared] > joins[:, region - 1 : region]
    out[:, start:shared] = torch.where(begun, made[:, : shared - start], out[:, start:shared])
    out[:, shared:stop] = made[:, shared - start :]


class Grid:
    """Equidistant frequencies k df, k0 <= k < k1, and their powers."""

    def __init__(self, df: float, k0: int, k1: int, device: torch.device | str = "cpu") -> None:
        # few distinct tables
        frequencies, powers = _powers(df, 1 << (k1 - 1).bit_length(), str(device))
        self.df, self.k0, self.k1 = df, k0, k1
        self.frequencies, self.powers = frequencies[k0:k1], powers[:, k0:k1]
        self.row = self.frequencies[None]
        self.newtonian = self.frequencies ** (-7 / 6)

    def splits(self, joins: Tensor) -> tuple[list[int], list[int]]:
        """First and last column at which any row passes from one region to the next, (2,) each."""
        low = torch.floor(joins.amin(0) / self.df).long() - self.k0
        high = torch.ceil(joins.amax(0) / self.df).long() + 1 - self.k0
        last = len(self.frequencies)
        return [min(max(0, int(k)), last) for k in low], [min(max(0, int(k)), last) for k in high]


@lru_cache(maxsize=32)
def _powers(df: float, k1: int, device: str) -> tuple[Tensor, Tensor]:
    f = torch.arange(k1, dtype=torch.float64) * df
    f[0] = df
    log = torch.log(f)
    rows = [f**p for p in POWERS] + [f**p * log for p in LOGS]
    return f.to(device), torch.stack(rows).to(device)


def _twisted(t: Mapping[str, Tensor], grid: Grid, h: Tensor) -> tuple[Tensor, Tensor]:
    """Cross and plus of a precessing binary from h of the aligned one (arXiv:1308.3271 eq. 11, with m = +-2 in the frame of L).

    With T(m) the sum over harmonics of Wigner's d at the opening angle beta times exp(i m alpha), plus is h/2 (T(2) + T(-2))
    and cross i h/2 (T(2) - T(-2)); in real functions of alpha and beta they are what is stacked here.
    """
    angle = torch.matmul(t["alpha"], grid.powers)
    tangent = t["in_plane"][:, None] / torch.matmul(t["opening"], grid.powers).abs()
    cosine = torch.rsqrt(1 + tangent * tangent)
    sine = tangent * cosine
    cos_1, sin_1 = torch.cos(angle), torch.sin(angle)
    cos_2, sin_2 = 1 - 2 * sin_1 * sin_1, 2 * sin_1 * cos_1
    even, odd = (1 + cosine * cosine) / 2, sine * cosine
    spectra = torch.empty(2, *h.shape, dtype=torch.complex128, device=h.device)
    parts = torch.view_as_real(spectra)
    functions = torch.stack([even * cos_2, odd * cos_1, sine * sine, even * sin_2, odd * sin_1], 1)
    parts[..., 0] = torch.bmm(t["real"], functions).transpose(0, 1)
    functions = torch.stack([cosine * sin_2, sine * sin_1, cosine * cos_2, sine * cos_1], 1)
    parts[..., 1] = torch.bmm(t["imaginary"], functions).transpose(0, 1)
    spectra *= h
    return spectra[1], spectra[0]
