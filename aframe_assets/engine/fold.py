"""Batch norms taken into the convolutions before them: two passes over memory less for the same result."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy of `network` in eval mode in which no batch norm that follows a convolution is left.

    A norm belongs to the convolution that was registered just before it in the same module, as all our networks have it.

    Raises:
        ValueError: a batch norm without such a convolution, or with another number of channels.
    """
    folded = copy.deepcopy(network).eval()
    for path, module in folded.named_modules():
        children = list(module.named_children())
        for (first, conv), (second, norm) in pairwise(children):
            if isinstance(conv, nn.Conv1d) and isinstance(norm, nn.BatchNorm1d) and conv.out_channels == norm.num_features:
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
        left = [name for name, child in module.named_children() if isinstance(child, nn.BatchNorm1d)]
        if left:
            raise ValueError(f"{path or type(module).__name__}.{left[0]}: a batch norm that follows no convolution of its width")
    return folded
