"""The section ``model`` of an experiment: networks, training, tuning, or weights to import."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from aframe_assets.config_quantities import Seconds, Section, later
from aframe_assets.model import own_networks


class LagHead(Section):
    """What joins the feature maps of the detectors in a `map` network."""

    encoder: Literal["shared", "separate"] = Field(default="shared", description="one encoder for all detectors, or one for each")
    channels: int = Field(default=64, ge=1, description="channels of a detector's feature map")
    map_stride: int = Field(default=16, ge=1, description="samples per frame of the map: the stride of one of the network's stages")
    groups: int = Field(default=16, ge=1, description="similarities of two maps at each lag; divides `channels`")
    hidden: int = Field(default=32, ge=1, description="channels of a frame after the maps have been joined")
    similarity: Literal["product", "cosine"] = Field(
        default="cosine", description="of two detectors' features: their product, or its bounded form"
    )


class StateSpace(Section):
    """The layers of an `s4` network (Gu, Gupta, Goel & Re 2022, arXiv:2206.11893)."""

    state: int = Field(default=64, ge=2, multiple_of=2, description="size of a channel's state, in conjugate pairs")
    dt_min: float = Field(default=0.001, gt=0, description="shortest first step of a channel; 1 / step is its time scale in frames")
    dt_max: float = Field(default=0.1, gt=0, description="longest first step of a channel")


class Architecture(Section):
    """The network, sized by config: that of reference 2.9, those of reference fast-timeslides, two more, or one of your own."""

    name: str = Field(
        default="resnet", description="'resnet', 'streaming', 'map', 'wavenet', 's4', or what a package registers in `aframe.networks`"
    )
    layers: list[int] = Field(default=[3, 4, 6, 3], description="of each stage ('wavenet': block); 's4' has one stage")
    width: int = Field(default=64, ge=1, description="channels of the first stage, or of all")
    kernel_size: int = Field(default=3, ge=1, description="of the convolutions after the first; 's4' has none")
    norm_groups: int = Field(default=16, ge=1, description="of 'resnet'; the others have norms that do not depend on the window")
    context: Seconds = Field(
        default=0, ge=0, description="whitened data on each side of the kernel that the network sees too; 'resnet' and 's4' need none"
    )
    lag_head: LagHead = LagHead()
    stem_kernel: int = Field(default=7, ge=1, description="samples of the first convolution")
    stem_stride: int = Field(default=2, ge=1, description="step of the first convolution, in samples")
    pooling: Literal["mean", "mean_max"] = Field(
        default="mean", description="over time, before the last layer; 'mean_max' adds the maximum, so that a loud signal is not diluted"
    )
    s4: StateSpace = later(StateSpace())
    settings: dict[str, Any] = later({}, description="of a network of your own, as its class declares them")

    @field_validator("settings")
    @classmethod
    def _declared(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """With the defaults of the class that declares them, so that an artifact's key has every value."""
        name = info.data.get("name")
        if name is None or not own_networks.is_registered(name):
            return settings
        return own_networks.find(name).complete(settings)


class Training(Section):
    """Augmentation, optimiser and validation (reference 2.7, 2.8)."""

    batch_size: int = Field(default=384, ge=2, description="kernels of a step, over all devices")
    batches_per_epoch: int = Field(default=3700, ge=1, description="steps of an epoch")
    max_epochs: int = Field(default=200, ge=1, description="epochs, unless `patience` ends it earlier")
    learning_rate: float = Field(default=5.85e-4, gt=0, description="the largest of the schedule, whatever the number of devices")
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    pct_lr_ramp: float = Field(default=0.115, gt=0, lt=1, description="share of all steps in which the learning rate rises")
    gradient_clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient of a step")
    waveform_prob: float = Field(default=0.277, ge=0, le=1, description="share of kernels with a signal")
    swap_prob: float = Field(
        default=0.014, ge=0, le=1, description="share of kernels with two different signals in their detectors, which do not count as one"
    )
    mute_prob: float = Field(
        default=0.055, ge=0, le=1, description="share of kernels with a signal in all detectors but one, which does not count"
    )
    glitch_prob: float = Field(
        default=0.0, ge=0, le=1, description="simulated single-detector glitches added to this share of kernels, per detector"
    )
    psd_block: Seconds = Field(
        default=32, gt=0, description="background whitened with one PSD, that of the psd_length before it, as in inference"
    )
    left_pad: Seconds = Field(default=0.25, description="least time from the left edge of a kernel to its merger")
    right_pad: Seconds = Field(default=0.05, description="least time from the merger to the right edge")
    signals: Literal["stored", "generated"] = later(
        "stored",
        description="the asset training_waveforms, or new draws of `waveforms.prior` for each 500 steps, made on the training device",
    )
    min_snr: float = Field(default=4, gt=0, description="lowest network SNR of a training signal")
    max_snr: float = Field(default=100, gt=0, description="highest network SNR of a training signal")
    snr_alpha: float = Field(default=-3.0, description="training SNRs follow SNR to this power")
    snr_start: float | None = Field(default=None, description="curriculum: lowest SNR at the first step, falling to min_snr")
    snr_decay_steps: int = Field(default=989, ge=1, description="steps in which `snr_start` falls to `min_snr`")
    valid_stride: Seconds = Field(default=0.5, gt=0, description="between validation windows")
    valid_livetime: Seconds = Field(default=57_600, gt=0, description="slid validation background that is scored after each epoch")
    background_livetime: Seconds = Field(
        default=57_600,
        gt=0,
        description="slid validation background that a 'streaming' or 'map' network scores once trained: sets the thresholds of a cascade",
    )
    valid_views: int = Field(default=5, ge=1, description="places of a signal in its kernel over which `valid_auroc` averages")
    max_fpr: float = Field(default=1e-3, gt=0, le=1, description="false-positive rate up to which `valid_auroc` looks")
    pool_length: Seconds = Field(
        default=8, gt=0, description="validation scores are pooled, and their events clustered, as with inference.cluster_window_length"
    )
    integration_length: Seconds = later(
        1.5, gt=0, description="validation scores are averaged over this, as with inference.integration_window_length"
    )
    valid_far_per_hour: float = later(
        1.0, gt=0, description="false-alarm rate of `valid_efficiency`; with less background, what is louder than all of it counts"
    )
    valid_snr_edges: list[float] = later(
        [4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0], min_length=1, description="network SNRs that separate the bins of the efficiency"
    )
    monitor: Literal["efficiency", "auroc"] = later(
        "efficiency", description="validation metric that decides which epoch is kept, and when `patience` ends"
    )
    patience: int | None = Field(default=None, ge=1, description="end after so many epochs without a better one; None: never")
    num_threads: int | None = Field(default=None, ge=1, description="of a training on a CPU; None: the cores of its step")
    schedule: Literal["one_cycle", "cosine"] = later(
        "one_cycle",
        description="learning rate by step: up to learning_rate during the share pct_lr_ramp, then down; 'one_cycle' starts at 1/25 of it "
        "and moves momentum against it, 'cosine' rises in a straight line from 0",
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32",
        description="'tf32' rounds factors on a GPU (on a CPU it is 'fp32'); 'bf16' multiplies in bfloat16 and keeps weights and sums in "
        "float32",
    )
    seed: int = Field(default=0, ge=0, description="another number draws other weights and batches for the same data")

    @field_validator("valid_snr_edges")
    @classmethod
    def _ascending(cls, edges: list[float]) -> list[float]:
        if edges != sorted(set(edges)):
            raise ValueError("expected ascending SNRs")
        return edges


class Tune(Section):
    """A study: trials of settings in fixed rounds (DESIGN `tuned_model`)."""

    num_rounds: int = Field(default=4, ge=1, description="rounds of trials, one after the other")
    trials_per_round: int = Field(default=2, ge=1, description="trainings of a round, side by side where there is room")
    max_epochs: int = Field(default=50, ge=1, description="of a trial; learning rates are made for as many")
    min_epochs: int | None = later(
        None,
        ge=1,
        description="first rung: epochs after which the best trials go on and the others stop; None: all are trained to the end",
    )
    reduction: int = later(3, ge=2, description="the best of this many trials at a rung goes on, to this many times as many epochs")
    space: dict[str, dict[str, Any]] = Field(
        default={"learning_rate": {"low": 1e-4, "high": 1e-3, "log": True}},
        description="key -> {low, high}, with log or step if wanted, or {choices}; a key of model.training, or a full one of "
        "model.architecture or conditioning",
    )


class Model(Section):
    """The network of a search: taken from elsewhere, or trained, and how."""

    weights: str | None = Field(
        default=None,
        min_length=1,
        description="bundle, run directory, or 'pretrained' (what is shipped), to take the model from instead of training",
    )
    architecture: Architecture = Architecture()
    filter: Architecture | None = Field(
        default=None, description="a 'map' network that chooses which times of a slide the 'streaming' network of `architecture` scores"
    )
    filter_weights: str | None = Field(default=None, min_length=1, description="as `weights`, of the network of `filter`")
    training: Training = Training()
    tune: Tune | None = None

    @property
    def reads_signals(self) -> bool:
        """Whether a training here reads training waveforms."""
        return self.trains and self.training.signals == "stored"

    @property
    def trains(self) -> bool:
        """Whether a network is trained here, so that training data are needed."""
        return not self.weights or (self.filter is not None and not self.filter_weights)
