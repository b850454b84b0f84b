"""Settings that cannot work: one line each, with the key, the value and what was expected."""

from __future__ import annotations

import re

import pytest

from aframe_assets.config_load import ConfigError, build_config

FRAMES = {"layers": [1, 1], "width": 4, "context": 0.125}
STREAMING = {"name": "streaming", **FRAMES}
MAP = {"name": "map", **FRAMES, "lag_head": {"map_stride": 8}}


def with_filter(**inference):
    training = {"valid_livetime": 3000}
    return {"model": {"architecture": STREAMING, "filter": MAP, "training": training}, "inference": inference}


LONG = {"model": {"architecture": STREAMING | {"context": 64}, "training": {"psd_block": 130}}}
"""A network that sees 129.5 s."""


def lines(data) -> list[str]:
    with pytest.raises(ConfigError) as e:
        build_config({"preset": "demo", **data}, source="aframe.yaml")
    return str(e.value).splitlines()


def network(**values):
    return {"model": {"architecture": values}}


def training(**values):
    return {"model": {"training": values}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (network(name="resnext"), ["model.architecture.name = resnext", "resnet, streaming, map"]),
        (network(layers=[]), ["model.architecture.layers = []", "at least one stage"]),
        (network(layers=[1, 0]), ["model.architecture.layers = [1, 0]", "at least one block each"]),
        (network(**STREAMING | {"layers": []}), ["model.architecture.layers = []", "at least one stage"]),
        (network(**MAP | {"layers": []}), ["model.architecture.layers = []", "at least one stage"]),
        (network(kernel_size=4), ["model.architecture.kernel_size = 4", "odd"]),
        (network(stem_kernel=3, stem_stride=4), ["model.architecture.stem_kernel = 3", "at least stem_stride 4"]),
        (network(**STREAMING | {"stem_kernel": 16}), ["model.architecture.stem_kernel = 16", "odd"]),
        (network(width=16, norm_groups=3), ["model.architecture.norm_groups = 3", "divides the channels of every stage, [16"]),
        (network(width=10, norm_groups=16), ["model.architecture.norm_groups = 16", "[10, 20"]),
        (
            {"model": {"architecture": STREAMING, "filter": MAP | {"kernel_size": 2}, "training": {"valid_livetime": 3000}}},
            ["model.filter.kernel_size = 2", "odd"],
        ),
        # 8 + 1.5 + 1 s, and 2 x 64 s of context
        (
            LONG | {"segments": {"test_min_duration": 138}},
            ["segments.test_min_duration = 138", "= 138.5 s"],
        ),
        (
            LONG | {"segments": {"test_min_duration": 139, "train_min_duration": 138}},
            ["segments.train_min_duration = 138", "2 x model.architecture.context = 138.5 s"],
        ),
        (
            LONG | {"segments": {"test_min_duration": 139, "max_duration": 138}},
            ["segments.max_duration = 138", "= 138.5 s"],
        ),
        (network(**STREAMING) | {"engine": {"block": 1025}}, ["engine.block = 1025", "segments.max_duration 1024 s"]),
        (network(**STREAMING) | {"engine": {"block": 16.001}}, ["engine.block = 16.001", "whole steps of 16 samples"]),
        ({"inference": {"merger_time_rate": 2}}, ["inference.merger_time_rate = 2", "from inference_rate 4 Hz"]),
        ({"inference": {"merger_time_rate": 4096}}, ["inference.merger_time_rate = 4096", "to sample_rate 2048 Hz"]),
        ({"inference": {"cascade": {"keep": 0.1}}}, ["inference.cascade.keep = 0.1", "a network in model.filter", "default 0.05"]),
        ({"inference": {"cascade": {"audit_slides": 0}}}, ["inference.cascade.audit_slides = 0", "a network in model.filter"]),
        (with_filter(num_slides=3, cascade={"audit_slides": 4}), ["inference.cascade.audit_slides = 4", "inference.num_slides 3"]),
        # a power of 0 or less than 0, and SNRs above the largest
        (training(snr_start=0), ["model.training.snr_start = 0", "from min_snr 6 to below max_snr 100"]),
        (training(snr_start=5.9), ["model.training.snr_start = 5.9", "from min_snr 6"]),
        (training(snr_start=100), ["model.training.snr_start = 100", "below max_snr 100"]),
        # a merger outside of its kernel is not in what validation keeps of a signal
        (training(left_pad=-0.1), ["model.training.left_pad = -0.1", "at least 0 s"]),
        (training(right_pad=-0.1), ["model.training.right_pad = -0.1", "at least 0 s"]),
        # a kernel is cut from one block
        (training(psd_block=1.4), ["model.training.psd_block = 1.4", "at least kernel_length 1.5 s"]),
        (
            {"model": {"architecture": STREAMING, "training": {"psd_block": 1.7}}},
            ["model.training.psd_block = 1.7", "kernel_length + 2 x model.architecture.context = 1.75 s"],
        ),
    ],
)
def test_refused_in_one_line(data, words):
    found = lines(data)
    assert len(found) == 1, found
    assert re.match(rf"aframe\.yaml: {re.escape(words[0])}(\.0)?: expected ", found[0]), found
    assert all(word in found[0] for word in words[1:]), found


@pytest.mark.parametrize(
    "data",
    [
        network(stem_kernel=8, stem_stride=4),
        LONG | {"segments": {"test_min_duration": 139}},
        network(**STREAMING) | {"engine": {"block": 1024}},
        network(**STREAMING) | {"engine": {"block": 2048}, "segments": {"max_duration": -1}},
        # a resnet's engine has no blocks
        {"engine": {"block": 2048}},
        {"inference": {"merger_time_rate": 4}},
        {"inference": {"merger_time_rate": 2048}},
        with_filter(num_slides=4, cascade={"audit_slides": 4}),
        # the default takes what slides there are
        with_filter(num_slides=0),
        # one detector has no pairs, and its own features still tell
        network(**MAP) | {"ifos": ["H1"], "inference": {"shifts": [0], "num_slides": 0}},
        {"ifos": ["H1"], **with_filter(shifts=[0], num_slides=0)},
        training(snr_start=6),
        training(snr_start=99),
        training(left_pad=0, right_pad=0),
        training(psd_block=1.5),
        # nothing is trained
        {"model": {"weights": "pretrained", "training": {"left_pad": -0.1, "psd_block": 1, "snr_start": 0}}},
    ],
)
def test_what_is_near_and_works_is_not_refused(data):
    assert build_config({"preset": "demo", **data}).preset == "demo"
