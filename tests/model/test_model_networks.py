"""WaveNet and state spaces, against other computations of the same sums; what cannot be built is refused."""

from __future__ import annotations

import pytest
import torch
from ml4gw.nn.ssm.s4d import S4Model

from aframe_assets.config import Architecture
from aframe_assets.config_load import ConfigError, build_config
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.receptive import least_context, streams, total_stride
from aframe_assets.model.wavenet import GatedLayer

HL = Sky(2, 2048.0, (0.01001,))
S4 = {"name": "s4", "layers": [2], "width": 8, "stem_stride": 1}


@pytest.mark.parametrize(("samples", "state"), [(40, 8), (200, 64), (1000, 16)])
def test_chunks_of_a_state_space_are_ml4gws_convolution(samples, state):
    torch.manual_seed(0)
    network = build_network(Architecture(**S4, s4={"state": state, "dt_min": 0.01}), HL).double()
    reference = S4Model(2, 1, 8, state, 2, dropout=0.0).double()
    reference.load_state_dict(network.state_dict())
    x = torch.randn(3, 2, samples, dtype=torch.float64) * 5
    ours, theirs = network(x), reference(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    ours.sum().backward(), theirs.sum().backward()
    wanted = {name: p.grad for name, p in reference.named_parameters()}
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("pooling", ["mean", "mean_max"])
def test_a_state_space_of_strided_frames_gives_a_logit_each(pooling):
    network = build_network(Architecture(**S4 | {"stem_stride": 8, "stem_kernel": 15, "pooling": pooling}), Sky(3, 2048.0, ()))
    assert network(torch.randn(4, 3, 3072)).shape == (4, 1)
    assert not any(isinstance(m, torch.nn.Dropout1d) and m.p for m in network.modules())


def test_a_state_space_trains_in_bfloat16():
    torch.manual_seed(0)
    network = build_network(Architecture(**S4 | {"stem_stride": 4, "stem_kernel": 15}), HL)
    x = torch.randn(8, 2, 1024) * torch.linspace(0.5, 8, 8)[:, None, None]
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    found.float().sum().backward()
    assert (found - exact).abs().max() < 0.1 * exact.std() + 0.01
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_gated_layer_is_the_formula_of_its_paper():
    torch.manual_seed(0)
    layer, x = GatedLayer(3, 3, 4).double(), torch.randn(1, 3, 30, dtype=torch.float64)
    got, skip = layer(x)
    w, b = layer.gated.weight, layer.gated.bias
    # one frame by hand, away from the ends: taps 4 frames apart
    taps = torch.stack([x[0, :, 15 - 4], x[0, :, 15], x[0, :, 15 + 4]], 1)
    pre = (w * taps).sum((1, 2)) + b
    z = torch.tanh(pre[:3]) * torch.sigmoid(pre[3:])
    out = layer.out.weight[..., 0] @ z + layer.out.bias
    torch.testing.assert_close(got[0, :, 15], x[0, :, 15] + out[:3])
    torch.testing.assert_close(skip[0, :, 15], out[3:])


def test_a_wavenets_context_follows_from_its_dilations():
    a = Architecture(name="wavenet", layers=[7, 7], width=4, stem_kernel=15, stem_stride=4)
    # (1 + 2 + ... + 64) x 2 blocks x 4 samples, and half a stem, in whole frames of 16 samples
    assert total_stride(a) == 16 and least_context(a, 2048.0, 0.01) == -(-(2 * 127 * 4 + 7) // 16) * 16
    assert streams(a) and not streams(Architecture(**S4)) and not streams(Architecture())


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ({"name": "s4", "layers": [2, 2]}, "model.architecture.layers = [2, 2]: expected one stage"),
        ({"name": "s4", "layers": [2], "context": 0.5}, "model.architecture.context = 0.5: expected 0"),
        ({"name": "s4", "layers": [2], "s4": {"dt_min": 0.2}}, "model.architecture.s4.dt_max = 0.1: expected at least s4.dt_min 0.2"),
        ({"name": "s4", "layers": [2], "s4": {"state": 7}}, "model.architecture.s4.state = 7"),
        ({"name": "wavenet", "layers": [3], "stem_kernel": 8}, "model.architecture.stem_kernel = 8: expected an odd number"),
        (
            {"name": "wavenet", "layers": [7, 7], "context": 0.125},
            "architecture.context = 0.125: expected at least 0.5 s, a multiple of 16",
        ),
        ({"name": "wave"}, "model.architecture.name = wave: expected one of resnet, streaming, map, wavenet, s4, or what an installed"),
        ({"settings": {"width": 3}}, "model.architecture.settings = {'width': 3}: expected none: 'resnet' is no network of your own"),
    ],
)
def test_what_cannot_be_built_is_refused_when_it_is_read(architecture, said):
    with pytest.raises(ConfigError) as e:
        build_config({"preset": "demo", "model": {"architecture": architecture}})
    assert said in str(e.value)


def test_a_state_space_has_no_engine_of_few_digits():
    with pytest.raises(ConfigError, match=r"engine\.precision = bf16: expected fp32 or tf32"):
        build_config({"preset": "demo", "model": {"architecture": {"name": "s4", "layers": [2]}}, "engine": {"precision": "bf16"}})
