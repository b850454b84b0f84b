"""The network against reference 2.9."""

from __future__ import annotations

import pytest
import torch
from ml4gw.nn.norm import GroupNorm1D
from ml4gw.nn.resnet.resnet_1d import ResNet1D as ReferenceResNet

from aframe_assets.config import Architecture
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.resnet import GroupNorm

HL = Sky(2, 2048.0, (0.01001,))


def test_default_is_the_resnet_34_of_the_reference():
    network = build_network(Architecture(), HL)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(7.22e6, rel=2e-3)
    assert network(torch.randn(2, 2, 3072)).shape == (2, 1)


def test_same_output_as_ml4gw_with_the_same_weights():
    torch.manual_seed(0)
    reference = ReferenceResNet(2, [1, 1, 1, 1], classes=1, norm_layer=lambda c: GroupNorm1D(c, 16)).eval()
    network = build_network(Architecture(layers=[1, 1, 1, 1]), HL).eval()
    network.load_state_dict(reference.state_dict())
    x = torch.randn(3, 2, 1024)
    torch.testing.assert_close(network(x), reference(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("ifos", "values"),
    [(3, {"width": 8, "norm_groups": 4, "layers": [2, 1]}), (2, {"width": 16, "stem_stride": 4, "stem_kernel": 15, "pooling": "mean_max"})],
)
def test_size_follows_the_config(ifos, values):
    network = build_network(Architecture(**{"layers": [1, 1, 1, 1]} | values), Sky(ifos, 2048.0, ()))
    assert network(torch.randn(4, ifos, 3072)).shape == (4, 1)


def test_group_norm_normalises_groups():
    x = torch.randn(5, 8, 300) * 7 + 3
    out = GroupNorm(8, 2)(x).reshape(5, 2, -1)
    torch.testing.assert_close(out.mean(-1), torch.zeros(5, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(-1, unbiased=False), torch.ones(5, 2), atol=1e-3, rtol=0)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match=r"model\.architecture\.name = resnext: expected one of resnet"):
        build_network(Architecture(name="resnext"), HL)
    with pytest.raises(ValueError, match="norm_groups"):
        build_network(Architecture(width=10, norm_groups=4), HL)
