"""Training in bfloat16 ranks by float32 scores."""

from __future__ import annotations

import numpy as np
import torch

from aframe_assets.model.training import train


def test_bfloat16_trains_and_scores_in_full(tiny_config, tiny_data, tmp_path, monkeypatch):
    from aframe_assets.model import lightning_module

    seen = []

    def spy(*arguments):
        found = lightning_module_score(*arguments)
        seen.append(np.concatenate(found.background))
        return found

    lightning_module_score = lightning_module.score
    monkeypatch.setattr(lightning_module, "score", spy)
    config = tiny_config(precision="bf16", max_epochs=1)
    files = {"background": tiny_data.background, "training_signals": tiny_data.training, "validation_signals": tiny_data.validation}
    trained = train(config, **files, workdir=tmp_path, seed=1)
    assert all(p.dtype == torch.float32 for p in trained.network.parameters())
    # eight bits of mantissa would leave a handful of different scores
    rounded = torch.from_numpy(seen[-1]).bfloat16().float().numpy()
    assert (rounded != seen[-1]).mean() > 0.9


def test_another_seed_is_another_network_of_the_same_data(tiny_config, tiny_data, tmp_path):
    files = {"background": tiny_data.background, "training_signals": tiny_data.training, "validation_signals": tiny_data.validation}
    config = tiny_config(max_epochs=1, batches_per_epoch=2)
    first, again, other = (train(config, **files, workdir=tmp_path / str(i), seed=seed).network for i, seed in enumerate((1, 1, 2)))
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
