"""Coefficients of TaylorF2, IMRPhenomD and IMRPhenomPv2 for many binaries, as sums of powers of frequency; see `phenom`.

Sources. TaylorF2: Buonanno et al. 2009 (arXiv:0907.0700) eq. 3.18, spins to 3.5 PN as collected by Mishra et al. 2016
(arXiv:1601.05588). IMRPhenomD: Khan et al. 2016 (arXiv:1508.07253), sections V-VI and appendix B; without the 3 PN
term quadratic in the spins, which was not known when it was fitted. IMRPhenomPv2: Hannam et al. 2014 (arXiv:1308.3271);
its frames as in LIGO-T1500602. The fitted coefficients and the tables of the ringdown are ml4gw's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from ml4gw.waveforms import IMRPhenomPv2
from torch import Tensor

PI = math.pi
AMPLITUDE_JOIN, PHASE_JOIN = 0.014, 0.018
"""G M f / c^3 at which the inspiral ends (arXiv:1508.07253, section VI)."""
POWERS = tuple(k / 12 for k in (-36, -20, -12, -8, -4, 0, 4, 8, 9, 12, 16, 20, 24, 28, 32, 36))
LOGS = (0.0, 1 / 3)
"""Exponents p of the terms f^p and f^p log f."""

Series = dict[tuple[float, int], Tensor]
"""{(p, l): c}: the sum of c x^p log(x)^l over binaries (n,); x = G M f / c^3."""


def add(*parts: Series) -> Series:
    """Sum of series."""
    out: Series = {}
    for part in parts:
        for key, c in part.items():
            out[key] = out[key] + c if key in out else c
    return out


def _scaled(series: Series, factor: Tensor | float) -> Series:
    return {k: c * factor for k, c in series.items()}


def value(series: Series, x: Tensor) -> Tensor:
    """Each binary's series at its own x, (n,)."""
    return sum((c * x**p * torch.log(x) ** k for (p, k), c in series.items()), torch.zeros_like(x))


def _slope(series: Series, x: Tensor) -> Tensor:
    terms = (c * x ** (p - 1) * (p * torch.log(x) ** k + k) for (p, k), c in series.items())
    return sum(terms, torch.zeros_like(x))


def matrix(series: Series, mass: Tensor) -> Tensor:
    """Coefficients (n, terms) of the powers of frequency in Hz, `POWERS` and then `LOGS`; `mass` in seconds."""
    columns = torch.zeros(len(mass), len(POWERS) + len(LOGS), dtype=torch.float64)
    for (p, k), c in series.items():
        i = min(range(len(POWERS)), key=lambda j: abs(POWERS[j] - p))
        scaled = c * mass**p
        columns[:, i] += scaled * torch.log(mass) if k else scaled
        if k:
            columns[:, len(POWERS) + (0 if p == 0 else 1)] += scaled
    return columns


def _post_newtonian(v_terms: Mapping[int, Tensor], log_terms: Mapping[int, Tensor]) -> Series:
    # v = (pi x)^(1/3)
    out: Series = {}
    for k, c in v_terms.items():
        out = add(out, {(k / 3, 0): c * PI ** (k / 3)})
    for k, c in log_terms.items():
        scaled = c * PI ** (k / 3) / 3
        out = add(out, {(k / 3, 1): scaled, (k / 3, 0): scaled * math.log(PI)})
    return out


def taylorf2_phase(m1: Tensor, m2: Tensor, chi1: Tensor, chi2: Tensor, quadratic_3pn: bool) -> Series:
    """Phase of the stationary-phase approximation to 3.5 PN; m1 + m2 = 1. `quadratic_3pn`: the 3 PN term quadratic in the spins."""
    eta, cross = m1 * m2, m1 * m2 * chi1 * chi2
    both = ((m1, chi1), (m2, chi2))
    squares = {k: sum(m ** (2 + k) * chi**2 for m, chi in both) for k in range(3)}
    p2 = 3715 / 756 + 55 / 9 * eta
    p3 = -16 * PI + sum(m * (25 + 38 / 3 * m) * chi for m, chi in both)
    p4 = 15293365 / 508032 + 27145 / 504 * eta + 3085 / 72 * eta**2 - 395 / 4 * cross - 405 / 8 * squares[0]
    p5 = PI * (38645 / 756 - 65 / 9 * eta)
    p5 = p5 - sum(m * chi * (13915 / 84 - 10 / 3 * eta + m * (12760 / 81 + 170 / 9 * eta)) for m, chi in both)
    p6_log = torch.full_like(eta, -6848 / 21)
    p6 = 11583231236531 / 4694215680 - 640 / 3 * PI**2 - 6848 / 21 * (np.euler_gamma + math.log(4))
    p6 = p6 + eta * (-15737765635 / 3048192 + 2255 / 12 * PI**2) + 76055 / 1728 * eta**2 - 127825 / 1296 * eta**3
    p6 = p6 + sum(PI * m * (1490 / 3 + 260 * m) * chi for m, chi in both)
    if quadratic_3pn:
        p6 = p6 + (32675 / 112 + 5575 / 18 * eta) * cross - 1645 / 32 * squares[0] + 1595 / 4 * squares[1] - 3065 / 36 * squares[2]
    p7 = PI * (77096675 / 254016 + 378515 / 1512 * eta - 74045 / 756 * eta**2)
    for m, chi in both:
        bare = -170978035 / 48384 + 2876425 / 672 * eta + 4735 / 144 * eta**2
        p7 = p7 + m * chi * (bare + m * (-7189233785 / 1524096 + 458555 / 3024 * eta - 5345 / 72 * eta**2))
    powers = {-5: torch.ones_like(eta), -3: p2, -2: p3, -1: p4, 0: p5, 1: p6, 2: p7}
    return _scaled(_post_newtonian(powers, {0: 3 * p5, 1: p6_log}), 3 / (128 * eta))


def _inspiral_amplitude(fits: IMRPhenomPv2, eta: Tensor, delta: Tensor, chi1: Tensor, chi2: Tensor, xi: Tensor) -> Series:
    """Over the Newtonian amplitude; arXiv:1508.07253 eqs. 28-30 and B14-B20."""
    s, a, e = (chi1 + chi2) / 2, (chi1 - chi2) / 2, eta
    a2 = -323 / 224 + 451 / 168 * e
    a3 = 27 / 8 * delta * a + (27 / 8 - 11 / 6 * e) * s
    a4 = -27312085 / 8128512 - 1975055 / 338688 * e + 105271 / 24192 * e**2
    a4 = a4 + (-81 / 32 + 8 * e) * a**2 - 81 / 16 * delta * a * s + (-81 / 32 + 17 / 8 * e) * s**2
    a5 = -85 / 64 * PI + 85 / 16 * PI * e + (285197 / 16128 - 1579 / 4032 * e) * delta * a
    a5 = a5 + (285197 / 16128 - 15317 / 672 * e - 2227 / 1008 * e**2) * s
    a6 = -177520268561 / 8583708672 + (545384828789 / 5007163392 - 205 / 48 * PI**2) * e
    a6 = a6 - 3248849057 / 178827264 * e**2 + 34473079 / 6386688 * e**3
    a6 = a6 + (1614569 / 64512 - 1873643 / 16128 * e + 2167 / 42 * e**2) * a**2 + PI * (31 / 12 - 7 / 3 * e) * s
    a6 = a6 + (1614569 / 64512 - 61391 / 1344 * e + 57451 / 4032 * e**2) * s**2
    a6 = a6 + delta * a * (31 / 12 * PI + (1614569 / 32256 - 165961 / 2688 * e) * s)
    newtonian = {0: torch.ones_like(e), 2: a2, 3: a3, 4: a4, 5: a5, 6: a6}
    rho = (fits.rho1_fun, fits.rho2_fun, fits.rho3_fun)
    return add(_post_newtonian(newtonian, {}), {(k / 3, 0): fun(e, e**2, xi) for k, fun in zip((7, 8, 9), rho, strict=True)})


@lru_cache(maxsize=1)
def _fits() -> IMRPhenomPv2:
    return IMRPhenomPv2().double()


@lru_cache(maxsize=1)
def _ringdown_table():
    from scipy.interpolate import CubicSpline

    fits = _fits()
    spin, ring, damp = (b.double().numpy() for b in (fits.qnmdata_a, fits.qnmdata_fring, fits.qnmdata_fdamp))
    return CubicSpline(spin, np.stack([ring, damp], 1), extrapolate=False)


def _ringdown(fits: IMRPhenomPv2, m1: Tensor, eta: Tensor, chi1: Tensor, chi2: Tensor, chi_p: Tensor) -> tuple[Tensor, Tensor]:
    """Frequency and damping of the ringdown; not a number for a final spin outside the table."""
    along = fits.FinalSpin0815(eta, eta**2, chi1, chi2)
    spin = torch.copysign(torch.hypot(along, chi_p * m1**2), along)
    found = torch.as_tensor(_ringdown_table()(spin.numpy())) / (1 - fits.PhenomInternal_EradRational0815(eta, eta**2, chi1, chi2))[:, None]
    return found[:, 0], found[:, 1]


def phenom_d(approximant: str, mass: Tensor, m1: Tensor, m2: Tensor, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Coefficients of IMRPhenomD, or of IMRPhenomPv2 that is made from it."""
    fits, eta, x_ref = _fits(), m1 * m2, mass * source["f_ref"]
    chi1, chi2 = source["s1z"], source["s2z"]
    chi_p = _chi_p(m1, m2, source) if approximant == "IMRPhenomPv2" else torch.zeros_like(m1)
    delta, square = m1 - m2, eta**2
    xi = fits.chiPN(delta, eta, chi1, chi2) - 1
    ring, damp = _ringdown(fits, m1, eta, chi1, chi2, chi_p)
    gamma1, gamma2, gamma3 = (fun(eta, square, xi) for fun in (fits.gamma1_fun, fits.gamma2_fun, fits.gamma3_fun))
    # the amplitude's maximum, eq. 20
    peak = torch.abs(ring + damp * (torch.sqrt((1 - gamma2**2).clamp(min=0)) - 1) * gamma3 / gamma2).nan_to_num(nan=4 * AMPLITUDE_JOIN)

    sigma = [fun(eta, square, xi) for fun in (fits.sigma1Fit, fits.sigma2Fit, fits.sigma3Fit, fits.sigma4Fit)]
    beta = [fun(eta, square, xi) for fun in (fits.beta1Fit, fits.beta2Fit, fits.beta3Fit)]
    alpha = [fun(eta, square, xi) for fun in (fits.alpha1Fit, fits.alpha2Fit, fits.alpha3Fit, fits.alpha4Fit, fits.alpha5Fit)]
    corrections = {(1.0, 0): sigma[0], (4 / 3, 0): 0.75 * sigma[1], (5 / 3, 0): 0.6 * sigma[2], (2.0, 0): 0.5 * sigma[3]}
    inspiral = add(taylorf2_phase(m1, m2, chi1, chi2, False), _scaled(corrections, 1 / eta))
    middle = _scaled({(1.0, 0): beta[0], (0.0, 1): beta[1], (-3.0, 0): -beta[2] / 3}, 1 / eta)
    merger = _scaled({(1.0, 0): alpha[0], (-1.0, 0): -alpha[1], (0.75, 0): 4 / 3 * alpha[2]}, 1 / eta)

    def merger_slope(x: Tensor) -> Tensor:
        return _slope(merger, x) + alpha[3] / eta * damp / ((x - alpha[4] * ring) ** 2 + damp**2)

    def merger_value(x: Tensor) -> Tensor:
        return value(merger, x) + alpha[3] / eta * torch.atan((x - alpha[4] * ring) / damp)

    # continuous value and slope at both joins, eqs. 16-17
    # a binary outside the table is not a number anyway, and must not move where the others' regions are looked for
    first, second = torch.full_like(eta, PHASE_JOIN), torch.nan_to_num(ring / 2, nan=2 * PHASE_JOIN)
    linear = _slope(inspiral, first) - _slope(middle, first)
    middle = add(middle, {(1.0, 0): linear, (0.0, 0): value(inspiral, first) - value(middle, first) - linear * first})
    linear = _slope(middle, second) - merger_slope(second)
    constant = value(middle, second) - merger_value(second) - linear * second

    if approximant == "IMRPhenomD":
        # coalescence at the amplitude's maximum as the merger's phase has it, and the phase of the source at f_ref
        time = -merger_slope(peak)
        there = torch.where(x_ref <= first, value(inspiral, x_ref), value(middle, x_ref))
        there = torch.where(x_ref > second, merger_value(x_ref) + linear * x_ref + constant, there)
        offset = -there - 2 * source["phase"] - time * x_ref
        twist: dict[str, Tensor] = {}
    else:
        time = -(merger_slope(ring) + linear)
        twist, offset, epsilon = _precession(mass, m1, m2, chi1, chi2, chi_p, source)
        inspiral, middle = add(inspiral, epsilon), add(middle, epsilon)
    common: Series = {(1.0, 0): time, (0.0, 0): offset}
    joined = {(1.0, 0): linear, (0.0, 0): constant}
    ending = add(merger, joined, {} if approximant == "IMRPhenomD" else epsilon)
    regions = torch.stack([matrix(add(s, common), mass) for s in (inspiral, middle, ending)], 1)

    amplitude = _inspiral_amplitude(fits, eta, delta, chi1, chi2, xi)
    join = torch.full_like(eta, AMPLITUDE_JOIN)
    width = gamma3 * damp
    height = gamma1 * gamma3 * damp / width**2

    def ring_amplitude(x: Tensor) -> tuple[Tensor, Tensor]:
        u = (x - ring) / width
        value = height * torch.exp(-gamma2 * u) / (1 + u**2)
        return value, -value / width * (gamma2 + 2 * u / (1 + u**2))

    (v1, d1), (v3, d3) = (value(amplitude, join), _slope(amplitude, join)), ring_amplitude(peak)
    v2 = fits.AmpIntColFitCoeff(eta, square, xi)
    span = peak - join
    d1, d3 = d1 * span, d3 * span
    # the quartic of x in [0, 1] with these values at 0, 1/2, 1 and slopes at 0 and 1
    rise, bend, half = v3 - v1 - d1, d3 - d1, v2 - v1 - d1 / 2
    c4 = 16 * half - 8 * rise + 2 * bend
    quartic = torch.stack([v1, d1, 3 * rise - bend + c4, bend - 2 * rise - 2 * c4, c4], 1)
    return twist | {
        "regions": regions,
        "phase_joins": torch.stack([first, second], 1) / mass[:, None],
        "alpha4": alpha[3] / eta,
        "atan_scale": mass / damp,
        "atan_offset": -alpha[4] * ring / damp,
        "inspiral": matrix(amplitude, mass),
        "quartic": quartic,
        "amplitude_joins": torch.stack([join, peak], 1) / mass[:, None],
        "ring_scale": mass / width,
        "ring_offset": -ring / width,
        "ring_decay": -gamma2,
        "ring_height": height,
    }


def _chi_p(m1: Tensor, m2: Tensor, source: Mapping[str, Tensor]) -> Tensor:
    """Effective precession spin; Schmidt et al. 2015 (arXiv:1408.1810) eq. 3.4."""
    weight_1, weight_2 = 2 + 1.5 * m2 / m1, 2 + 1.5 * m1 / m2
    perp_1 = weight_1 * m1**2 * torch.hypot(source["s1x"], source["s1y"])
    perp_2 = weight_2 * m2**2 * torch.hypot(source["s2x"], source["s2y"])
    return torch.maximum(perp_1, perp_2) / (weight_1 * m1**2)


def _orbital(eta: Tensor) -> dict[int, Tensor]:
    # angular momentum of the orbit to 2 PN without spins, over M^2, by powers of v
    return {-1: eta, 1: eta * (1.5 + eta / 6), 3: eta * (27 / 8 - 19 / 8 * eta - eta**2 / 24)}


def _precession(
    mass: Tensor, m1: Tensor, m2: Tensor, chi1: Tensor, chi2: Tensor, chi_p: Tensor, source: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor, Series]:
    """What `_twisted` needs; the constant of the phase; and twice the angle epsilon, which is part of the phase."""
    eta, phase, inclination = m1 * m2, source["phase"], source["inclination"]
    v_ref = (PI * mass * source["f_ref"]) ** (1 / 3)
    orbit = sum(c * v_ref**k for k, c in _orbital(eta).items())
    jx, jy = (m1**2 * source[f"s1{c}"] + m2**2 * source[f"s2{c}"] for c in "xy")
    jz = orbit + m1**2 * chi1 + m2**2 * chi2
    perp = torch.hypot(jx, jy)
    theta_j = torch.atan2(perp, jz)
    # spins along L leave the azimuth of J free; this choice is lalsimulation's
    phi_j = torch.where(perp < 1e-15, PI / 2 - phase, torch.atan2(jy, jx))

    def to_j(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y = x * torch.cos(phi_j) + y * torch.sin(phi_j), y * torch.cos(phi_j) - x * torch.sin(phi_j)
        return x * torch.cos(theta_j) - z * torch.sin(theta_j), y, x * torch.sin(theta_j) + z * torch.cos(theta_j)

    # the line of sight in the frame of J; turned about J into the x-z plane
    nx, ny, nz = to_j(torch.sin(inclination) * torch.sin(phase), torch.sin(inclination) * torch.cos(phase), torch.cos(inclination))
    turn = -torch.atan2(ny, nx)
    nx = torch.hypot(nx, ny)
    theta = torch.atan2(nx, nz)
    # LAL's x axis of the wave against that of Arun et al. 2009 (arXiv:0810.5336)
    wx, wy, wz = to_j(-torch.cos(inclination) * torch.sin(phase), -torch.cos(inclination) * torch.cos(phase), torch.sin(inclination))
    wx, wy = wx * torch.cos(turn) - wy * torch.sin(turn), wx * torch.sin(turn) + wy * torch.cos(turn)
    zeta = torch.atan2(wx * nz - wz * nx, -wy)

    ratio = m1 / m2
    along = (1 + ratio) / ratio * (m1 * chi1 + m2 * chi2)
    angles = _fits().ComputeNNLOanglecoeffs(ratio, along, chi_p)
    omega_ref = v_ref**3

    def angle(name: str) -> tuple[Series, Tensor]:
        c = [angles[f"{name}coeff{i}"] for i in range(1, 6)]
        series = _post_newtonian({-3: c[0], -2: c[1], -1: c[2], 1: c[4]}, {0: 3 * c[3]})
        return series, value(series, omega_ref / PI)

    alpha, alpha_ref = angle("alpha")
    epsilon, epsilon_ref = angle("epsilon")
    alpha = add(alpha, {(0.0, 0): turn + PI - alpha_ref})
    opening = add(_post_newtonian(_orbital(eta), {}), {(0.0, 0): m1**2 * chi1 + m2**2 * chi2})

    harmonics = math.sqrt(5 / (64 * PI))
    c, s = torch.cos(theta), torch.sin(theta)
    y_m2, y_2 = harmonics * (1 - c) ** 2, harmonics * (1 + c) ** 2
    y_m1, y_1 = 2 * harmonics * s * (1 - c), 2 * harmonics * s * (1 + c)
    y_0 = math.sqrt(15 / (32 * PI)) * s**2
    cz, sz, zero = torch.cos(2 * zeta), torch.sin(2 * zeta), torch.zeros_like(zeta)
    # rows: plus, cross; columns: the real functions of `_twisted`. See there.
    sums_re = torch.stack([y_m2 + y_2, -(y_m1 - y_1), math.sqrt(6) / 2 * y_0, zero, zero], 1)
    differences_im = torch.stack([zero, zero, zero, y_m2 - y_2, -(y_m1 + y_1)], 1)
    sums_im = torch.stack([y_m2 + y_2, -(y_m1 - y_1), zero, zero], 1)
    differences_re = torch.stack([zero, zero, y_m2 - y_2, -(y_m1 + y_1)], 1)
    cz, sz = cz[:, None], sz[:, None]
    twist = {
        "alpha": matrix(alpha, mass),
        "opening": matrix(opening, mass),
        "in_plane": chi_p * m1**2,
        "real": torch.stack([cz * sums_re - sz * differences_im, -cz * differences_im - sz * sums_re], 1) / 2,
        "imaginary": torch.stack([cz * sums_im + sz * differences_re, cz * differences_re - sz * sums_im], 1) / 2,
    }
    # twice the azimuth of J is the phase of the aligned binary's frame
    return twist, 2 * phi_j - PI / 4 - 2 * epsilon_ref, _scaled(epsilon, 2.0)
