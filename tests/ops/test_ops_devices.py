"""`aframe run --devices`: what steps of this machine and one training get, for one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from aframe_assets.config_load import ConfigError, build_config
from aframe_ops.cli.devices import with_devices
from aframe_ops.site import SiteConfig


@pytest.mark.parametrize(
    ("devices", "gpus", "named", "handed"),
    [
        ("0,1", 2, None, ["0", "1"]),
        (" 3 ", 1, None, ["3"]),
        ("GPU-7e1f,MIG-5c", 2, None, ["GPU-7e1f", "MIG-5c"]),
        ("cpu,cpu,cpu", 0, ["cpu"] * 3, None),
    ],
)
def test_devices_of_a_run(devices, gpus, named, handed):
    before = build_config({"preset": "demo", "execution": {"training": {"gpus": 1, "cpus_per_gpu": 3, "devices": ["cuda:0"]}}})
    config, site = with_devices(before, SiteConfig(directory=Path()), devices)
    training = config.execution.training
    assert (training.gpus, training.devices, site.executor.gpus) == (gpus, named, handed)
    assert f'"gpus": {gpus}' in str(training.tags) and training.cpus_per_gpu == 3
    # nothing else changes, and what was given stays as it is
    assert before.execution.training.devices == ["cuda:0"]
    same = {"training": before.execution.training}
    assert config.model_copy(update={"execution": config.execution.model_copy(update=same)}) == before


@pytest.mark.parametrize("devices", ["", "0,0", "0,cpu", "gpu", "0 1", "-1"])
def test_devices_that_cannot_be(devices):
    with pytest.raises(ConfigError, match="expected different GPUs, as 0,1 or GPU-8f3c, or cpu once for each process"):
        with_devices(build_config({"preset": "demo"}), SiteConfig(directory=Path()), devices)
