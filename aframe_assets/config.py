"""The one model of an experiment: what is computed, never where it runs.

Every quantity has one name and one place. Durations are seconds, frequencies hertz, GPS times
seconds; a value may also be written with its unit (``"1.5 s"``, ``"2 kHz"``, ``"30 day"``) and is
refused when the unit is of another kind. Unknown keys are refused.

`load_config` merges, in rising precedence, the preset, the experiment file (overrides only) and
environment variables ``AFRAME__SECTION__KEY``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aframe_assets.config_execution import Execution, TrainingResources
from aframe_assets.config_model import Architecture, LagHead, Model, StateSpace, Training, Tune
from aframe_assets.config_quantities import SECONDS_PER_YEAR, Hertz, Seconds, Section, in_key

__all__ = [
    "SECONDS_PER_YEAR",
    "Architecture",
    "Cascade",
    "Comparison",
    "Conditioning",
    "Config",
    "Engine",
    "Execution",
    "Hertz",
    "Inference",
    "Injections",
    "LagHead",
    "Model",
    "Seconds",
    "Section",
    "Segments",
    "Sensitivity",
    "Simulated",
    "StateSpace",
    "Strain",
    "Training",
    "TrainingResources",
    "Tune",
    "Vetoes",
    "Waveforms",
]


class Segments(Section):
    """Which times are analysed (reference 2.1)."""

    source: Literal["gwosc", "dqsegdb", "files", "fixed", "strain_files"] = Field(
        default="gwosc", description="who knows when detectors were in science mode"
    )
    flags: list[str] = Field(default_factory=list, description="default: '{ifo}_DATA' of each ifo")
    segment_server: str = Field(default="https://segments.igwn.org", description="DQSegDB server, of source 'dqsegdb' and of veto flags")
    host: str | None = Field(default=None, description="GWOSC server; None is gwosc.org")
    files: dict[str, str] = Field(default_factory=dict, description="source 'files': ifo -> segment list")
    fixed: list[tuple[float, float]] = Field(default_factory=list, description="source 'fixed': science segments [start, stop)")
    train_start: float | None = Field(default=None, description="GPS time; training and validation data begin here")
    train_stop: float | None = Field(default=None, description="GPS time; they end here")
    test_start: float | None = Field(default=None, description="GPS time; what is searched begins here")
    test_stop: float | None = Field(default=None, description="GPS time; it ends here")
    train_min_duration: Seconds = Field(default=1024, gt=0, description="shorter stretches are not trained on")
    test_min_duration: Seconds = Field(default=128, gt=0, description="shorter stretches are not searched")
    max_duration: Seconds = Field(default=20000, description="longest chunk; -1 never cuts")
    min_valid_duration: Seconds = Field(
        default=15000, ge=0, description="training chunks are given to validation, latest first, until this much"
    )


class Vetoes(Section):
    """Test times that are not searched though there is strain: taken out of zero lag, background, injections and livetime alike."""

    categories: list[str] = Field(
        default=[], description="data-quality bits that must be set, as CBC_CAT2 (every detector) or L1_CBC_CAT2 (that one)"
    )
    hardware_injections: list[str] = Field(
        default=[], description="injection bits that must be set, as NO_CBC_HW_INJ; a set bit means that nothing was injected"
    )
    flags: list[str] = Field(
        default=[], description="DQSegDB flags whose active time is vetoed, as L1:DCH-NAME:1 or DCH-NAME:1 (every detector)"
    )
    files: dict[str, list[str]] = Field(default={}, description="ifo -> segment lists of vetoed time")
    gates: dict[str, str] = Field(default={}, description="ifo -> file of gates, lines 'centre half-width taper', seconds")
    catalog: str | None = Field(default=None, description="event catalogue (CSV with GPS column) or 'packaged'; vetoed in zero lag too")
    catalog_pad: Seconds = Field(default=1.0, gt=0, description="seconds vetoed on each side of a catalogue event")

    @property
    def bits(self) -> list[str]:
        """Mask bits, or GWOSC timelines, that must be set."""
        return [*self.categories, *self.hardware_injections]

    @property
    def asked(self) -> bool:
        """Whether anything is vetoed; without, the graph has no asset `vetoes`."""
        return bool(self.bits or self.flags or self.files or self.gates or self.catalog)


class Simulated(Section):
    """Simulated noise: coloured Gaussian noise, spectral lines, glitches; a function of (seed, ifo, GPS)."""

    asd: dict[str, str] = Field(
        default_factory=dict, description="ifo -> name of a packaged noise curve of bilby (as 'aLIGO_O4_high_asd.txt') or a file"
    )
    lines: list[Hertz] = Field(default=[36.0, 60.0, 500.0, 1000.0], description="frequencies of spectral lines")
    line_snr: float = Field(default=30.0, ge=0, description="amplitude of a line over the noise in one second")
    glitch_rate: float = Field(default=20.0, ge=0, description="glitches per hour and detector")
    glitch_snr: tuple[float, float] = Field(default=(5.0, 100.0), description="SNRs between which glitches are drawn")


class Strain(Section):
    """Where strain comes from (reference 2.2)."""

    source: Literal["gwosc", "frames", "files", "simulated"] = Field(
        default="gwosc", description="who has strain; 'frames' is GWDataFind or NDS"
    )
    channels: dict[str, str] = Field(default_factory=dict, description="source 'frames': ifo -> channel name")
    files: list[str] = Field(default_factory=list, description="source 'files': files, folders or globs")
    host: str | None = Field(default=None, description="server of 'gwosc' or 'frames'; None is the usual one")
    min_dq: str = Field(default="DATA", description="data-quality bit that must be set for a second to count as science data")
    simulated: Simulated = Simulated()


class Conditioning(Section):
    """One whitening definition for training, export and inference (reference 2.6; DESIGN decision 6)."""

    kernel_length: Seconds = Field(default=1.5, gt=0, description="whitened data that the network sees at once")
    psd_length: Seconds = Field(default=64, gt=0, description="data before a block from which its PSD is estimated")
    fduration: Seconds = Field(default=1, gt=0, description="length of the whitening filter; half of it is lost at each end")
    fftlength: Seconds = Field(default=2, gt=0, le=2, description="length of the stretches of which Welch's method takes the median")
    highpass: Hertz | None = Field(default=32, gt=0, description="lower edge of the band of whitened data and SNRs; None: no edge")
    lowpass: Hertz | None = Field(default=None, gt=0, description="upper edge of the same band; None: no edge")


class Waveforms(Section):
    """Training and validation signals (reference 2.3, 2.4)."""

    prior: str = Field(default="end_o3_ratesandpops", description="a named prior or a bilby prior file")
    validation_prior: str | None = Field(default=None, description="population of validation signals; None: that of `prior`")
    approximant: str = Field(default="IMRPhenomPv2", description="waveform model")
    duration: Seconds = Field(default=8, gt=0, description="length of a signal's window")
    minimum_frequency: Hertz = Field(default=20, gt=0, description="gravitational-wave frequency at which signals begin")
    reference_frequency: Hertz = Field(default=50, gt=0, description="frequency at which spins are given")
    right_pad: Seconds = Field(default=2, ge=0, description="from the merger to the end of the window")
    snr_threshold: float = Field(
        default=4, ge=0, description="validation signals and injections below this network SNR are rejected, and counted"
    )
    max_num_samples: int = Field(default=3000, ge=1, description="signals that are made at once, at most")
    num_training_signals: int = Field(default=100_000, ge=1, description="size of the training set")
    num_training_jobs: int = Field(default=10, ge=1, description="steps in which it is made")
    num_validation_signals: int = Field(default=20_000, ge=1, description="size of the validation set")
    num_validation_jobs: int = Field(default=10, ge=1, description="steps in which it is made")


class Injections(Section):
    """Signals placed in slid test data (reference 2.5)."""

    prior: str = Field(
        default="end_o3_ratesandpops", description="population that the volume is measured with: a named prior or a bilby prior file"
    )
    num_signals: int = Field(default=500_000, ge=0, description="placed in all test chunks together")
    spacing: Seconds = Field(
        default=16, description="seconds between the end of one waveform and the start of the next; may be negative down to -duration"
    )
    buffer: Seconds = Field(default=16, ge=0, description="seconds at each end of a chunk without an injection")
    jitter: Seconds = Field(default=0.1, ge=0, description="injections are moved by up to this, either way")


class Engine(Section):
    """What runs the network of a search, and how exactly it has to."""

    platform: Literal["auto", "torch", "aotinductor", "onnxruntime", "openvino", "tensorrt"] = Field(
        default="auto", description="what runs the network; 'auto' measures all that are installed, once, when the engine is built"
    )
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = Field(
        default="fp32", description="of the multiplications; lower ones are faster, move logits and swap ranks"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="'auto' is a GPU where the engine's step sees one")
    parity_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="largest accepted difference of logits, either way, between engine and torch model; by default 1e-3 for fp32, 2e-2 for "
        "tf32, 5e-2 for fp16 and 0.5 for bf16",
    )
    parity_rank: float = Field(
        default=0.99, ge=0, le=1, description="least accepted rank correlation of logits between engine and torch model"
    )
    block: Seconds = Field(
        default=16, gt=0, description="output of one call of a network of frames or maps; a multiple of its total stride; memory grows"
    )


class Cascade(Section):
    """How the network of `model.filter` chooses what the other one scores (reference fast-timeslides, pre-filter)."""

    keep: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="largest share of a slide's outputs that the joint network scores; sets the thresholds (1: all are kept)",
    )
    max_loss: float = Field(
        default=1e-3, ge=0, lt=1, description="largest share of injections found at a FAR of 1 per day that the filter may lose; checked"
    )
    audit_slides: int = Field(default=2, ge=0, description="slides of each segment that are also searched in full, to measure the loss")


class Inference(Section):
    """Timeslides (reference 2.5, 2.11)."""

    inference_rate: Hertz = Field(default=4, gt=0, description="windows per second")
    batch_size: int = Field(
        default=128, ge=1, description="windows per engine call; also the PSD block, batch_size / inference_rate seconds"
    )
    integration_window_length: Seconds = Field(
        default=1.5, gt=0, description="the detection statistic is the network's output averaged over this"
    )
    cluster_window_length: Seconds = Field(default=8, gt=0, description="of the events in this, the loudest is kept")
    Tb: Seconds = Field(default=31_536_000, ge=0, description="background livetime wanted; sets the number of slides")
    num_slides: int | None = Field(default=None, ge=0, description="overrides Tb")
    shifts: list[float] = Field(default=[0, 1], description="seconds each detector is shifted by in slide 1; slide i uses i times this")
    slide_mode: Literal["linear", "ring"] = Field(default="linear", description="'ring' shifts round inside a chunk, for short stretches")
    psd_source: Literal["preceding", "segment"] = Field(
        default="preceding",
        description="'preceding': each block is whitened with the psd_length before it; 'segment': one PSD of the whole chunk",
    )
    zero_lag: bool = Field(default=True, description="whether unshifted data are searched too")
    exclude_catalog: str | None = Field(
        default=None, description="event catalogue (CSV with GPS column); slid outputs that touch a merger are dropped"
    )
    exclude_pad: Seconds = Field(default=0.5, ge=0, description="seconds around a catalogue merger that an output may not touch")
    merger_time_rate: Hertz = Field(default=64, gt=0, description="rate at which a candidate is re-scored to find merger_time")
    recovery_window: Seconds = Field(default=1.0, gt=0, description="an injection is recovered by the loudest event within this time of it")
    event_time_convention: Literal["right_edge", "upstream_v1"] = Field(
        default="right_edge", description="'upstream_v1' gives times as Aframe 1 did, one output earlier"
    )
    memory_gb: float = Field(
        default=2,
        gt=0,
        description="memory of a step that searches one chunk: at least 0.9, and twice the longest chunk's whitened strain; "
        "more slides and longer maps are handled at once with more",
    )
    mode: Literal["inprocess", "triton"] = Field(
        default="inprocess",
        description="who evaluates the network: the step itself, or a Triton server on model_repository that each step starts "
        "(or triton.url of site.yaml)",
    )
    in_flight: int = Field(default=4, ge=1, description="requests that a step has under way at a Triton server")
    cascade: Cascade = Cascade()


class Sensitivity(Section):
    """FAR, sensitive volume, p_astro, candidates (reference 2.13, 2.14)."""

    mass_combos: list[tuple[float, float]] = Field(
        default=[(35, 35), (35, 20), (20, 20), (20, 10)], description="source-frame masses at which V is given"
    )
    target_sigma: float = Field(default=0.1, gt=0, description="width of the log-normal masses about each of them")
    max_far: float | None = Field(default=None, gt=0, description="per year; None: up to the highest the background allows")
    fars_per_hour: list[float] = Field(default=[], description="FARs at which V is printed")
    fars_per_year: list[float] = Field(default=[1.0, 12.0, 365.25], description="FARs at which V is printed")
    min_effective_samples: float = Field(default=10, gt=0, description="with fewer found injections, effectively, V is an upper limit")
    snr_max: float = Field(default=1e4, gt=0, description="louder injections are left out")
    merger_rate: float = Field(default=28.0, gt=0, description="of binary black holes, Gpc^-3 yr^-1, for p_astro; an input, not measured")
    merger_rate_interval: tuple[float, float] = Field(
        default=(17.9, 44.0), description="90 % interval of merger_rate, Gpc^-3 yr^-1 (default: GWTC-3, arXiv:2111.03634, at z = 0.2)"
    )
    aframe_compatible: bool = Field(default=False, description="volumes and errors as Aframe 1 computes them, for comparison")
    exercise: bool = Field(default=False, description="label V an exercise, not a measurement")
    catalog: str | list[str] | None = Field(
        default=None, description="event catalogues that candidates are matched with: a file, 'packaged', or a list of them"
    )
    match_window: Seconds = Field(default=1.0, gt=0, description="a candidate and a catalogue event within this time are the same event")
    comparators: list[str] = Field(default=[], description="published volumes drawn beside ours, by name; 'all' for every one")


class Comparison(Section):
    """Models that `aframe compare` searches this experiment's test data with; it fills this in, nobody writes it by hand."""

    models: list[tuple[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]] = Field(
        default=[], description="name, and sha256 of a bundle that the store holds; others are compared with the first"
    )
    broken: dict[str, str] = Field(default={}, description="name -> why a model that was asked for is not among them")

    @property
    def bundles(self) -> dict[str, str]:
        """sha256 -> the first of its names, in the order of `models`: what is searched with, each once."""
        out: dict[str, str] = {}
        for name, sha256 in self.models:
            out.setdefault(sha256, name)
        return out


_ABSENT: Any = {}


def _at(values: dict[str, Any], parts: list[str]) -> Any:
    """What is at the path `parts`, or `_ABSENT`."""
    for part in parts:
        if part not in values:
            return _ABSENT
        values = values[part]
    return values


class Config(Section):
    """An experiment. See `load_config`."""

    preset: str = Field(default="o3", description="the set of values that this experiment starts from")
    name: str = Field(default="aframe", pattern=r"^[A-Za-z0-9_.-]+$", description="of the experiment; in messages and reports")
    seed: int = Field(default=1122, ge=0, description="of all data that are drawn; a training has one more, `model.training.seed`")
    ifos: list[str] = Field(default=["H1", "L1"], min_length=1, description="detectors that are searched together")
    detectors: dict[str, str] = Field(
        default={}, description="ifo -> file of its geometry, in bilby's .interferometer format; H1, L1, V1 and K1 need none"
    )
    sample_rate: Hertz = Field(default=2048, gt=0, description="of all strain and signals")
    segments: Segments = Segments()
    vetoes: Vetoes = Vetoes()
    strain: Strain = Strain()
    conditioning: Conditioning = Conditioning()
    waveforms: Waveforms = Waveforms()
    injections: Injections = Injections()
    model: Model = Model()
    engine: Engine = Engine()
    inference: Inference = Inference()
    sensitivity: Sensitivity = Sensitivity()
    comparison: Comparison = Comparison()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        from aframe_assets.config_rules import violations

        found = violations(self)
        if found:
            raise ValueError("\n".join(found))
        return self

    def select(self, paths: tuple[str, ...], without: tuple[str, ...] = ()) -> dict[str, Any]:
        """The values at dotted `paths` less those at `without`, as plain data; what an asset's key is made of.

        A value that is `config_quantities.later` and at its default is left out.
        """
        whole = in_key(self)
        for path in without:
            *sections, name = path.split(".")
            _at(whole, sections).pop(name, None)
        found = {path: _at(whole, path.split(".")) for path in paths}
        return {path: value for path, value in found.items() if value is not _ABSENT}

    @property
    def psd_block(self) -> float:
        """Seconds of data whitened with one PSD in streaming inference."""
        return self.inference.batch_size / self.inference.inference_rate
