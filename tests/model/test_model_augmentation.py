"""Augmentation (reference 2.7) against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from aframe_assets.model.augmentation import Augmentation, flip, mute_channels, swap_channels
from aframe_assets.model.batches import TrainingBatches
from aframe_assets.model.ranks import ALONE, Rank
from aframe_assets.model.samplers import STRAIN_SCALE, BackgroundFiles, Placement, SnrCurriculum, generator_of
from aframe_assets.strain.background_file import read_background
from aframe_assets.strain.conditioning import Whitener
from aframe_assets.waveforms.detectors import get_detectors

RATE, ASD = 512, 1e-23


@pytest.fixture
def setup(tiny_config, sine_gaussians):
    def make(**training):
        config = tiny_config(**training)
        placement, whitener = Placement.of(config), Whitener(config.conditioning, RATE)
        waves = torch.from_numpy(sine_gaussians(40, np.random.default_rng(3)) * STRAIN_SCALE).float()
        waves = waves[..., 3 * RATE - placement.before : 3 * RATE + placement.after]
        waves = torch.nn.functional.pad(waves, (0, placement.size - waves.shape[-1]))
        psd = torch.full((40, 2, RATE // 2 + 1), ASD**2, dtype=torch.float64)
        return config, placement, Augmentation(config.model.training, placement, whitener, get_detectors(config.ifos)), waves, psd

    return make


def test_snr_after_rescaling_is_the_target_by_the_definition_of_snr(setup):
    config, placement, augment, waves, psd = setup(left_pad=0.4, right_pad=0.4)
    snrs = torch.linspace(5, 50, 40)
    kernels = augment.signals(waves, psd, snrs, *augment.places(40, generator_of(1))).double().numpy()
    # white noise: the kernel holds the whole signal, whitened strain is strain over sqrt(S fs / 2), so that
    # 4 int |h|^2 / S df above the highpass is the sum of the whitened samples' squares seen through the same band
    spectrum = np.abs(np.fft.rfft(kernels) / RATE) ** 2
    frequencies = np.fft.rfftfreq(placement.kernel, 1 / RATE)
    df, white_psd = 1 / config.conditioning.kernel_length, 2 / RATE
    rho = np.sqrt((4 * spectrum[..., frequencies >= 20] / white_psd).sum(-1) * df)
    np.testing.assert_allclose(np.sqrt((rho**2).sum(-1)), snrs.numpy(), rtol=0.01)


def test_network_snr_agrees_with_an_inner_product_over_the_strain(setup):
    _, _, augment, waves, psd = setup()
    projected = augment.project(waves, augment.places(40, generator_of(2))[0]).double().numpy() / STRAIN_SCALE
    white = augment.whitener.whiten(torch.from_numpy(projected), psd).double()
    got = white.square().sum((-1, -2)).sqrt().numpy()
    size = projected.shape[-1]
    spectrum, f = np.abs(np.fft.rfft(projected) / RATE) ** 2, np.fft.rfftfreq(size, 1 / RATE)
    want = np.sqrt((4 * spectrum[..., f >= 32] / ASD**2).sum((-1, -2)) * RATE / size)
    np.testing.assert_allclose(got, want, rtol=0.01)


def test_projection_agrees_with_bilby(setup):
    bilby = pytest.importorskip("bilby")
    _, _, augment, waves, _ = setup()
    u = torch.rand(3, 5, generator=generator_of(4), dtype=torch.float64)
    out, u = augment.project(waves[:5], u).numpy(), u.numpy()
    dec, psi, phi = np.arcsin(2 * u[0] - 1), np.pi * u[1], 2 * np.pi * u[2]
    for ifo, channel in (("H1", 0), ("L1", 1)):
        detector = bilby.gw.detector.get_empty_interferometer(ifo)
        for i in range(5):
            # phi is right ascension less sidereal time; bilby takes right ascension, so choose a time and undo it
            time = 1.24e9
            gmst = bilby.gw.utils.greenwich_mean_sidereal_time(time)
            ra = (phi[i] + gmst) % (2 * np.pi)
            response = [detector.antenna_response(ra, dec[i], time, psi[i], mode) for mode in ("cross", "plus")]
            want = response[0] * waves[i, 0].numpy() + response[1] * waves[i, 1].numpy()
            delay = detector.time_delay_from_geocenter(ra, dec[i], time) * RATE
            # a delay of any part of a sample, by the shift theorem; waves are float32 and stay so
            turns = np.fft.rfftfreq(4 * len(want))
            want = np.fft.irfft(np.fft.rfft(want, 4 * len(want)) * np.exp(-2j * np.pi * turns * delay))[: len(want)]
            assert np.abs(want - out[i, channel]).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(("left", "right"), [(0.25, 0.05), (0.1, 0.3)])
def test_merger_lies_between_the_pads(setup, left, right):
    config, placement, augment, _waves, psd = setup(left_pad=left, right_pad=right)
    # an impulse at the merger stays an impulse in white noise, up to the highpass
    pulse = torch.zeros(40, 2, placement.size)
    pulse[..., placement.before] = 1.0
    at = []
    for seed in range(20):
        kernels = augment.signals(pulse, psd, torch.full((40,), 10.0), *augment.places(40, generator_of(seed)))
        # the detectors are at most 21 ms from the geocentre
        at.append(kernels[:, 0].abs().argmax(-1))
    at = torch.cat(at) / RATE
    assert at.min() >= left - 0.025 and at.max() <= config.conditioning.kernel_length - right + 0.025
    assert at.min() < left + 0.03 and at.max() > config.conditioning.kernel_length - right - 0.03


def test_views_go_from_edge_to_edge(setup):
    _, placement, _, _, _ = setup(left_pad=0.25, right_pad=0.05)
    merger = [placement.before - placement.crop - s for s in placement.views(5)]
    assert merger[0] == pytest.approx(0.25 * RATE, abs=1) and merger[-1] == placement.kernel - int(0.05 * RATE)
    assert np.ptp(np.diff(merger)) <= 1 and len(placement.views(1)) == 1


def test_swap_exchanges_one_channel_between_pairs():
    # reference 4.2, row "swapper": 128 elements, share one half, channel forced to 1
    x = torch.randn(128, 2, 10)
    source, changed = swap_channels(128, 2, 64, generator_of(0), channel=1)
    out = x[source, torch.arange(2)]
    assert changed == 64
    for i in range(32):
        assert torch.equal(out[i, 1], x[i + 32, 1]) and torch.equal(out[i + 32, 1], x[i, 1])
    assert torch.equal(out[:, 0], x[:, 0]) and torch.equal(out[64:], x[64:])
    same, none = swap_channels(128, 2, 0, generator_of(0))
    assert torch.equal(x[same, torch.arange(2)], x) and none == 0
    assert swap_channels(128, 2, 1, generator_of(0))[1] == 2 and swap_channels(3, 2, 9, generator_of(0))[1] == 2


def test_mute_takes_one_channel_of_each():
    heard, index = mute_channels(50, 3, 20, generator_of(0))
    assert len(set(index.tolist())) == 20 and heard.shape == (50, 3)
    assert ((~heard).sum(1)[index] == 1).all() and (~heard).sum() == 20
    assert len(torch.unique((~heard)[index].long().argmax(1))) == 3


def test_flip_keeps_values_and_takes_all_four_forms():
    x, rng = torch.arange(1.0, 5.0).expand(4000, 2, 4).clone(), generator_of(0)
    out = flip(x, *(torch.rand(4000, 2, generator=rng) < 0.5 for _ in range(2)))
    forms, counts = np.unique(out.reshape(-1, 4).numpy(), axis=0, return_counts=True)
    assert len(forms) == 4 and stats.chisquare(counts).pvalue > 1e-4


def test_parts_of_ranks_are_the_batch(tiny_config, tiny_data):
    # many swaps, so that ranks need signals of each other's elements; 13 elements, so that their numbers differ
    config = tiny_config(batch_size=13, waveform_prob=0.4, swap_prob=0.3, mute_prob=0.2, glitch_prob=0.5)

    def make(rank):
        return TrainingBatches(config, tiny_data.background["train"], tiny_data.training, 5, rank=rank)

    whole, parts = make(ALONE), [make(Rank(("cpu",) * 3, i)) for i in range(3)]
    for step in range(4):
        x, y = whole.batch(step)
        for got, want in zip(zip(*(p.batch(step) for p in parts), strict=True), (x, y), strict=True):
            assert [len(g) for g in got] == [5, 4, 4]
            torch.testing.assert_close(torch.cat(got), want, rtol=1e-5, atol=1e-5)


def test_labels_and_shares(tiny_config, tiny_data):
    config = tiny_config(batch_size=256, waveform_prob=0.4, swap_prob=0.1, mute_prob=0.1, glitch_prob=0.0, min_snr=200, max_snr=201)
    batches = TrainingBatches(config, tiny_data.background["train"], tiny_data.training, 5)
    share, loud = [], []
    for step in range(4):
        x, y = batches.batch(step)
        assert x.shape == (256, 2, RATE) and x.dtype == torch.float32 and y.shape == (256, 1)
        share.append(y.mean().item())
        # at SNR 200 a signal shows: samples far beyond noise, in both detectors for (nearly) every positive
        seen = x.abs().amax(-1) > 8
        loud.append(seen.any(1)[y[:, 0] == 1].float().mean().item())
        assert 0.12 < (seen.any(1) & (y[:, 0] == 0)).float().mean() < 0.28
    assert np.mean(share) == pytest.approx(0.4, abs=0.04) and min(loud) > 0.97


def test_background_kernels_are_those_of_the_file_whitened_alone(tiny_config, tiny_data):
    config = tiny_config()
    whitener = Whitener(config.conditioning, RATE)
    path = tiny_data.background["train"][1]
    files = BackgroundFiles([path], config.ifos, whitener, 8.0, 1.0)
    stream = files.stream(path, "L1")
    strain = torch.from_numpy(read_background(path, ["L1"]).strain["L1"])
    lead, crop, kernel = 4 * RATE, RATE // 2, RATE
    start = 10 * RATE + 37  # in the second block, whose PSD is that of strain from 8 s to 12 s
    psd = whitener.psd(strain[8 * RATE : 8 * RATE + lead])
    alone = whitener.whiten(strain[lead + start : lead + start + kernel + 2 * crop][None], psd[None])[0]
    torch.testing.assert_close(stream.strain[0, start : start + kernel], alone, rtol=0, atol=5e-3)
    assert stream.strain.shape[1] == len(strain) - lead - 2 * crop and len(stream.psd) == 4
    assert 0.9 < stream.strain.std() < 1.1


def test_a_batch_depends_on_seed_and_step_only(tiny_config, tiny_data):
    config = tiny_config()

    def make(seed):
        return TrainingBatches(config, tiny_data.background["train"], tiny_data.training, seed)

    one, two = make(5), make(5)
    one.batch(0), one.batch(600)
    for a, b in zip(one.batch(3), two.batch(3), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(two.batch(3)[0], two.batch(4)[0]) and not torch.equal(two.batch(3)[0], make(6).batch(3)[0])


def test_detectors_are_taken_at_different_times(tiny_config, tiny_data):
    config = tiny_config(waveform_prob=0.0, swap_prob=0.0, mute_prob=0.0, glitch_prob=0.0, batch_size=64)
    batches = TrainingBatches(config, tiny_data.background["train"], tiny_data.training, 5)
    both = [generator_of(5, 2, 0) for _ in range(2)]
    assert both[0].initial_seed() == both[1].initial_seed()
    x, y = batches.batch(0)
    assert y.sum() == 0 and len(torch.unique(x[:, 0, 0])) > 60
    # the same pair of times would recur in 64 draws of 2000 x 2000 only by mistake
    assert 0.9 < x.std() < 1.1


def test_curriculum_and_power_law():
    snrs = SnrCurriculum(4, 100, -3, start=12, decay_steps=100)
    assert [snrs.low(s) for s in (0, 50, 100, 10**6)] == [12, 8, 4, 4]
    drawn = snrs.sample(20_000, 200, generator_of(0)).numpy()
    # p(x) ~ x^-3 on [4, 100]
    assert stats.kstest(drawn, lambda x: (4.0**-2 - x**-2.0) / (4.0**-2 - 100.0**-2)).pvalue > 1e-3
    flat = SnrCurriculum(4, 100, -1).sample(20_000, 0, generator_of(0)).numpy()
    assert stats.kstest(np.log(flat / 4) / np.log(25), "uniform").pvalue > 1e-3


def test_background_that_is_too_short_is_refused(tiny_config, tiny_data):
    config = tiny_config()
    with pytest.raises(ValueError, match=r"31 s of strain; expected at least .* = 45 s"):
        BackgroundFiles([tiny_data.background["train"][1]], config.ifos, Whitener(config.conditioning, RATE), 8.0, 40.0)
    with pytest.raises(ValueError, match="no background files"):
        BackgroundFiles([], config.ifos, Whitener(config.conditioning, RATE), 8.0, 1.0)
