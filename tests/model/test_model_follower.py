"""A network that learns from another one, as a cascade's filter does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aframe_assets.config_load import build_config
from aframe_assets.model.lightning_module import Follower
from aframe_assets.model.training import newest_checkpoint, train
from aframe_assets.model.validation import ValidationSet, score


class Loudness(torch.nn.Module):
    """A leader that has never seen a label: how loud the quieter detector is, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(4.0))
        self.dropout = torch.nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # in training it would say something else
        return self.dropout(self.scale * x.std(-1).log().amin(-1, keepdim=True))


def files(tiny_data) -> dict:
    return {"background": tiny_data.background, "training_signals": tiny_data.training, "validation_signals": tiny_data.validation}


def test_a_follower_says_what_its_leader_says(tiny_config, tiny_data, tmp_path):
    tree = tiny_config(max_epochs=8, batches_per_epoch=12, learning_rate=1e-2).model_dump(mode="json")
    # norms that depend on the window would hide how loud it is
    tree["model"]["architecture"] |= {"name": "streaming", "context": 0.125}
    leader, config = Loudness(), build_config(tree)
    trained = train(config, **files(tiny_data), workdir=tmp_path, seed=1, leader=leader)
    losses = [row["train_loss"] for row in trained.history]
    assert losses[-1] < 0.5 * losses[0]
    correlations = [row["valid_correlation"] for row in trained.history]
    assert trained.best_epoch == int(np.argmax(correlations)) and len(set(correlations)) == 8 and max(correlations) < 1
    data = ValidationSet(config, tiny_data.background["validation"], tiny_data.validation)
    ours, theirs = (score(network, data, 16) for network in (trained.network, leader))
    joined = [np.concatenate([s.foreground, *s.background]) for s in (ours, theirs)]
    assert np.corrcoef(*joined)[0, 1] > 0.8
    # the leader is not trained, and no checkpoint holds it
    assert leader.scale == 4 and not leader.scale.requires_grad
    assert all(k.startswith("network.") for k in newest_checkpoint(tmp_path / "checkpoints")[1]["state_dict"])


def test_labels_are_not_asked_and_loud_differences_count_linearly(tiny_config):
    module = Follower(tiny_config(), Loudness())
    x = torch.randn(4, 2, 512, generator=torch.Generator().manual_seed(1))
    logits = Loudness().eval()(x).detach() + torch.tensor([[0.0], [0.5], [-3.0], [100.0]])
    for labels in (torch.zeros(4, 1), torch.ones(4, 1)):
        # x^2 / 2 below a difference of 1, |x| - 1 / 2 above
        assert module.compare(x, logits, labels).item() == pytest.approx((0 + 0.125 + 2.5 + 99.5) / 4, rel=1e-5)
