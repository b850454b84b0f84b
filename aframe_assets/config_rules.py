"""Combinations of settings that cannot work, each with the key, the value and what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Literal

from aframe_assets.engine import support
from aframe_assets.inference import memory
from aframe_assets.model import halving, importing, receptive, search_space
from aframe_assets.waveforms import approximants, prior_files
from aframe_assets.waveforms.detectors import BUILT_IN, get_detectors, travel_time

if TYPE_CHECKING:
    from aframe_assets.config import Config


def mask_source(config: Config) -> Literal["strain_files", "timelines"] | None:
    """What answers for data-quality and injection bits: what answers for science mode, or else what the strain comes from."""
    if config.segments.source in ("gwosc", "dqsegdb"):
        return "timelines"
    if config.segments.source == "strain_files" or (config.strain.source in ("files", "frames") and config.strain.files):
        return "strain_files"
    return "timelines" if config.strain.source == "gwosc" else None


def violations(config: Config) -> list[str]:
    """Every impossible combination in `config`, one line each; empty when there is none."""
    c, out = config, []

    def refuse(key: str, value: object, expected: str) -> None:
        out.append(f"{key} = {value}: {expected}")

    cond, inf, seg, wave = c.conditioning, c.inference, c.segments, c.waveforms
    if len(set(c.ifos)) != len(c.ifos):
        refuse("ifos", c.ifos, "expected each detector once")
    if not set(c.detectors) <= set(c.ifos):
        refuse("detectors", c.detectors, f"expected geometry files of ifos {c.ifos} only")
    strangers = [i for i in c.ifos if i not in BUILT_IN and i not in c.detectors]
    if strangers:
        refuse("ifos", c.ifos, f"no geometry of {strangers[0]}; known are {', '.join(BUILT_IN)}, give a file as detectors.{strangers[0]}")
    rate = c.sample_rate / inf.inference_rate
    if abs(rate - round(rate)) > 1e-9:
        refuse("inference.inference_rate", inf.inference_rate, f"expected a rate that divides sample_rate {c.sample_rate:g} Hz")
    if not inf.inference_rate <= inf.merger_time_rate <= c.sample_rate:
        refuse(
            "inference.merger_time_rate",
            inf.merger_time_rate,
            f"expected from inference_rate {inf.inference_rate:g} Hz, at which events are found, to sample_rate {c.sample_rate:g} Hz",
        )
    if len(inf.shifts) != len(c.ifos):
        refuse("inference.shifts", inf.shifts, f"expected one shift for each of ifos {c.ifos}")
    if any(s < 0 for s in inf.shifts) or (len(inf.shifts) > 1 and max(inf.shifts) == 0 and inf.num_slides != 0):
        refuse("inference.shifts", inf.shifts, "expected shifts >= 0 s, at least one above 0")
    if inf.shifts and any(abs(s * c.sample_rate - round(s * c.sample_rate)) > 1e-9 for s in inf.shifts):
        refuse("inference.shifts", inf.shifts, "expected whole samples")
    least, strain = memory.least_memory(c)
    if inf.memory_gb < least:
        parts = f"libraries {memory.LIBRARIES / 1e9:g} GB, slides at least {memory.LEAST / 1e9:g} GB, strain of the longest chunk, with and"
        refuse(
            "inference.memory_gb",
            inf.memory_gb,
            f"expected at least {math.ceil(100 * least) / 100:g}: {parts} without signals, {strain:.2f} GB (less with a shorter "
            "segments.max_duration)",
        )
    if cond.fftlength > cond.psd_length:
        refuse("conditioning.psd_length", cond.psd_length, f"expected at least fftlength {cond.fftlength:g} s")
    if cond.highpass and cond.highpass >= c.sample_rate / 2:
        refuse("conditioning.highpass", cond.highpass, f"expected below the Nyquist frequency {c.sample_rate / 2:g} Hz")
    if cond.highpass and cond.lowpass and cond.lowpass <= cond.highpass:
        refuse("conditioning.lowpass", cond.lowpass, f"expected above highpass {cond.highpass:g} Hz")
    unusable = approximants.problem(wave.approximant)
    if unusable:
        refuse("waveforms.approximant", wave.approximant, unusable)
    elif c.model.trains and not c.model.reads_signals and wave.approximant not in approximants.BATCHED:
        refuse(
            "waveforms.approximant",
            wave.approximant,
            f"signals are made while training; expected {', '.join(approximants.BATCHED)}, or model.training.signals: stored",
        )
    named = {"waveforms.prior": wave.prior, "waveforms.validation_prior": wave.validation_prior, "injections.prior": c.injections.prior}
    for key, prior in named.items():
        # a path is read when it is known from where: in load_config
        if prior and not {".", "/"} & set(prior.partition("(")[0]):
            try:
                prior_files.read(prior)
            except ValueError as e:
                refuse(key, prior, f"{e}; a file without a dot in its name is written ./NAME")
    if wave.right_pad >= wave.duration:
        refuse("waveforms.right_pad", wave.right_pad, f"expected less than waveforms.duration {wave.duration:g} s")
    if c.injections.spacing <= -wave.duration:
        refuse("injections.spacing", c.injections.spacing, f"expected above -waveforms.duration, {-wave.duration:g} s")
    else:
        step, apart = wave.duration + c.injections.spacing, 2 * (inf.recovery_window + c.injections.jitter)
        if step < apart:
            refuse(
                "injections.spacing",
                c.injections.spacing,
                f"signals would come every {step:g} s, so that one event recovers several; expected waveforms.duration + spacing of at "
                f"least 2 x (inference.recovery_window + injections.jitter) = {apart:g} s",
            )
    # what a network sees beside the kernel; a filter's is the same
    context = 2 * c.model.architecture.context
    said = "psd_length + kernel_length + fduration" + (" + 2 x model.architecture.context" if context else "")
    whole = cond.psd_length + cond.kernel_length + cond.fduration + context
    need = whole if inf.psd_source == "preceding" else whole - cond.psd_length
    for role in ("train", "test"):
        shortest = getattr(seg, f"{role}_min_duration")
        if role == "train" and not c.model.trains:
            continue
        floor = whole if role == "train" else need
        if shortest < floor:
            if cond.kernel_length > shortest:
                refuse(
                    "conditioning.kernel_length",
                    cond.kernel_length,
                    f"expected a kernel shorter than the shortest segment, segments.{role}_min_duration {shortest:g} s",
                )
            elif cond.psd_length > shortest:
                refuse(
                    "conditioning.psd_length",
                    cond.psd_length,
                    f"expected a PSD shorter than the shortest data, segments.{role}_min_duration {shortest:g} s",
                )
            else:
                refuse(f"segments.{role}_min_duration", shortest, f"expected at least {said} = {floor:g} s")
    if 0 < seg.max_duration < whole:
        refuse("segments.max_duration", seg.max_duration, f"expected at least {said} = {whole:g} s, or -1")
    if seg.max_duration <= 0 and seg.max_duration != -1:
        refuse("segments.max_duration", seg.max_duration, "expected seconds > 0, or -1 for no cut")
    _architectures(c, refuse)
    e = c.engine
    if e.platform != "auto" and e.device not in ("auto", *support.SUPPORT[e.platform]):
        refuse("engine.device", e.device, f"expected {' or '.join(support.SUPPORT[e.platform])}, where platform {e.platform} runs")
    elif not support.supported(e.platform, e.precision, e.device):
        known = " or ".join(support.precisions(e.platform, e.device))
        place = "" if e.device == "auto" else f" on {e.device}"
        refuse("engine.precision", e.precision, f"expected {known}, which platform {e.platform} has{place}")
    _training(c, refuse)
    _study(c, refuse)
    times = [(k, getattr(seg, k)) for k in ("train_start", "train_stop", "test_start", "test_stop")]
    if seg.source != "strain_files":
        for key, value in times:
            if value is None and (c.model.trains or not key.startswith("train")):
                refuse(f"segments.{key}", value, "expected a GPS time in seconds")
    known = [(k, v) for k, v in times if v is not None]
    for (k0, v0), (k1, v1) in pairwise(known):
        if v1 < v0:
            refuse(f"segments.{k1}", v1, f"expected not before {k0} {v0:g}")
    pairs = c.sensitivity.mass_combos
    if not pairs or any(not m1 >= m2 > 0 for m1, m2 in pairs):
        refuse("sensitivity.mass_combos", pairs, "expected at least one pair (m1, m2), solar masses with m1 >= m2 > 0")
    if c.sensitivity.comparators:
        from aframe_assets.sensitivity.comparators import ALL, known

        if not set(c.sensitivity.comparators) <= {*known(), ALL}:
            refuse("sensitivity.comparators", c.sensitivity.comparators, f"expected some of {', '.join((*known(), ALL))}")
    low, high = c.sensitivity.merger_rate_interval
    if not 0 < low <= c.sensitivity.merger_rate <= high:
        refuse(
            "sensitivity.merger_rate_interval",
            c.sensitivity.merger_rate_interval,
            f"expected [low, high] with 0 < low <= merger_rate {c.sensitivity.merger_rate:g} <= high; state it with the rate",
        )
    if seg.source == "strain_files" and c.model.trains and not known:
        refuse("model.weights", c.model.weights, "expected a trained model (`aframe init --weights RUN_DIR`): no train times are given")
    if c.model.weights == importing.PRETRAINED and not importing.is_shipped():
        refuse("model.weights", c.model.weights, "no weights are shipped with this version; expected a bundle folder or a run directory")
    if seg.source == "files" and set(seg.files) != set(c.ifos):
        refuse("segments.files", seg.files, f"expected one segment list for each of ifos {c.ifos}")
    vetoes = c.vetoes
    for key in ("files", "gates"):
        if not set(getattr(vetoes, key)) <= set(c.ifos):
            refuse(f"vetoes.{key}", getattr(vetoes, key), f"expected files of ifos {c.ifos} only")
    for key in ("categories", "hardware_injections", "flags"):
        for flag in getattr(vetoes, key):
            named = re.match(r"^([A-Z][0-9])[_:]", flag)
            if named and named.group(1) not in c.ifos:
                refuse(f"vetoes.{key}", flag, f"expected a flag of ifos {c.ifos}")
            elif (":" in flag) != (key == "flags"):
                closed = "expected a DQSegDB flag, NAME:VERSION or IFO:NAME:VERSION"
                refuse(f"vetoes.{key}", flag, closed if key == "flags" else "expected a bit of GWOSC; flags of DQSegDB go to vetoes.flags")
            elif key == "hardware_injections" and "NO_" not in flag:
                refuse(f"vetoes.{key}", flag, "expected a bit that is set when nothing was injected, as NO_CBC_HW_INJ")
    if vetoes.bits and mask_source(c) is None:
        refuse(
            "vetoes.categories" if vetoes.categories else "vetoes.hardware_injections",
            vetoes.bits,
            f"nothing knows these bits with segments.source {seg.source} and strain.source {c.strain.source}; expected strain files with "
            "masks, or GWOSC; lists of vetoed time go to vetoes.files",
        )
    if seg.source == "fixed" and not seg.fixed:
        refuse("segments.fixed", seg.fixed, "expected at least one [start, stop) pair")
    if (seg.source == "strain_files" or c.strain.source == "files") and not c.strain.files:
        refuse("strain.files", c.strain.files, "expected at least one file, folder or glob")
    if c.strain.source == "simulated" and not set(c.ifos) <= set(c.strain.simulated.asd):
        refuse("strain.simulated.asd", c.strain.simulated.asd, f"expected a noise curve for each of ifos {c.ifos}")
    if c.strain.source == "frames" and set(c.strain.channels) != set(c.ifos):
        refuse("strain.channels", c.strain.channels, f"expected one channel for each of ifos {c.ifos}")
    return out


def _architectures(c: Config, refuse: Callable[[str, object, str], None]) -> None:
    """Networks that cannot be built, or that could not be streamed over slides."""
    for key, a in (("model.architecture", c.model.architecture), ("model.filter", c.model.filter)):
        if a is None:
            continue
        wrong = receptive.impossible(a)
        for name, value, expected in wrong:
            refuse(f"{key}.{name}", value, expected)
        # strides and reach are known of a network that can be built
        if wrong or not receptive.streams(a):
            continue
        context = a.context * c.sample_rate
        step = receptive.total_stride(a)
        least = receptive.least_context(a, c.sample_rate, _longest_travel(c))
        if context < least or abs(context / step - round(context / step)) > 1e-6:
            refuse(
                f"{key}.context",
                a.context,
                f"expected at least {least / c.sample_rate:g} s, a multiple of {step} samples, so that no frame feels the window's end",
            )
        moves = {
            "conditioning.kernel_length": (c.conditioning.kernel_length, c.conditioning.kernel_length),
            "inference.inference_rate": (c.inference.inference_rate, 1 / c.inference.inference_rate),
            "inference.shifts": (c.inference.shifts, c.inference.shifts),
            "engine.block": (c.engine.block, c.engine.block),
        }
        for name, (value, seconds) in moves.items():
            samples = [s * c.sample_rate / step for s in (seconds if isinstance(seconds, list) else [seconds])]
            if any(abs(n - round(n)) > 1e-6 for n in samples):
                refuse(name, value, f"expected whole steps of {step} samples, the total stride of {key}: a frame serves many windows")
        longest = c.segments.max_duration
        if a is c.model.architecture and 0 < longest < c.engine.block:
            refuse("engine.block", c.engine.block, f"expected at most the longest chunk, segments.max_duration {longest:g} s")
    if c.model.architecture.name == "s4" and c.engine.precision in ("fp16", "bf16"):
        refuse("engine.precision", c.engine.precision, "expected fp32 or tf32: the states of 's4' decay too slowly for fewer digits")
    _cascade(c, refuse)


def _training(c: Config, refuse: Callable[[str, object, str], None]) -> None:
    """Settings that a training would stop at once its data have been made."""
    t, kernel, context = c.model.training, c.conditioning.kernel_length, c.model.architecture.context
    if t.left_pad + t.right_pad >= kernel:
        refuse("model.training.left_pad", t.left_pad, f"expected left_pad + right_pad below kernel_length {kernel:g} s")
    if t.waveform_prob + t.swap_prob + t.mute_prob > 1:
        refuse("model.training.waveform_prob", t.waveform_prob, "expected waveform_prob + swap_prob + mute_prob <= 1")
    if t.max_snr <= t.min_snr:
        refuse("model.training.max_snr", t.max_snr, f"expected above min_snr {t.min_snr:g}")
    if int(1 / t.valid_stride * t.pool_length) < 2:
        refuse("model.training.pool_length", t.pool_length, f"expected at least two strides of valid_stride {t.valid_stride:g} s")
    if not c.model.trains:
        return
    for key in ("left_pad", "right_pad"):
        if getattr(t, key) < 0:
            refuse(f"model.training.{key}", getattr(t, key), "expected at least 0 s: a merger lies in its kernel")
    if t.snr_start is not None and t.max_snr > t.min_snr and not t.min_snr <= t.snr_start < t.max_snr:
        refuse("model.training.snr_start", t.snr_start, f"expected from min_snr {t.min_snr:g} to below max_snr {t.max_snr:g}")
    if t.psd_block < kernel + 2 * context:
        said = f"kernel_length + 2 x model.architecture.context = {kernel + 2 * context:g}" if context else f"kernel_length {kernel:g}"
        refuse("model.training.psd_block", t.psd_block, f"expected at least {said} s, which is cut from one block")


def _study(c: Config, refuse: Callable[[str, object, str], None]) -> None:
    """Settings of a search for settings."""
    tune = c.model.tune
    if tune is None:
        return
    for key, expected in search_space.problems(c):
        refuse(f"model.tune.space.{key}", tune.space[key], expected)
    if tune.min_epochs is not None and tune.min_epochs > tune.max_epochs:
        refuse("model.tune.min_epochs", tune.min_epochs, f"expected at most model.tune.max_epochs {tune.max_epochs}")
    steps = halving.rungs(tune.min_epochs, tune.max_epochs, tune.reduction)
    if tune.num_rounds < len(steps):
        said = f"expected at least {len(steps)}, a round for each rung ({', '.join(map(str, steps))} epochs), or no trial reaches the last"
        refuse("model.tune.num_rounds", tune.num_rounds, said)


def _cascade(c: Config, refuse: Callable[[str, object, str], None]) -> None:
    """Settings of a filter, and of no filter."""
    cascade = c.inference.cascade
    if c.model.filter is None:
        for name, field in type(cascade).model_fields.items():
            if getattr(cascade, name) != field.default:
                expected = f"expected a network in model.filter, or the default {field.default}: without a filter this does nothing"
                refuse(f"inference.cascade.{name}", getattr(cascade, name), expected)
    slides, default = c.inference.num_slides, type(cascade).model_fields["audit_slides"].default
    # the default audits what slides there are
    if c.model.filter is not None and slides is not None and slides < cascade.audit_slides != default:
        refuse("inference.cascade.audit_slides", cascade.audit_slides, f"expected at most inference.num_slides {slides}")
    if c.model.filter is not None and not (c.model.weights and c.model.filter_weights):
        from aframe_assets.inference.cascade import AROUND, MARGIN, Reach

        reach = Reach.of(c.inference)
        around = (reach.before + reach.after + 1) / c.inference.inference_rate / AROUND / MARGIN
        keep, seconds = c.inference.cascade.keep, c.model.training.background_livetime
        if keep * seconds < around:
            refuse(
                "inference.cascade.keep",
                keep,
                f"expected a share of model.training.background_livetime {seconds:g} s that is at least {around:.3g} s, "
                f"{1 / AROUND / MARGIN:.2g} times what is scored around one trigger, better 100 times that: the thresholds are found on it",
            )
    if c.model.filter_weights and c.model.filter is None:
        refuse("model.filter_weights", c.model.filter_weights, "expected a network in model.filter, which these weights are of")
    if c.model.filter is not None:
        if (c.model.architecture.name, c.model.filter.name) != ("streaming", "map"):
            refuse("model.filter.name", c.model.filter.name, "expected 'map', with model.architecture.name 'streaming'")
        elif c.model.filter.context != c.model.architecture.context:
            refuse(
                "model.filter.context", c.model.filter.context, f"expected model.architecture.context {c.model.architecture.context:g} s"
            )


def _longest_travel(c: Config) -> float:
    try:
        return max((travel_time(a, b) for a, b in combinations(get_detectors(c.ifos, c.detectors), 2)), default=0.0)
    except (ValueError, OSError):
        # said elsewhere
        return 0.0
