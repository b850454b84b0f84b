"""Checks of this room's assets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aframe_assets.store.job import Check

if TYPE_CHECKING:
    from pathlib import Path

EXPORTED_CHECKS = [("exported_equals_torch", True)]
ENGINE_CHECKS = [("engine_equals_torch", True)]
REPOSITORY_CHECKS = [("snapshotter_cuts_windows", True)]


def parity_check(name: str, found: Mapping[str, Mapping[str, Any]]) -> Check:
    """Every form in `found` (name -> `Parity.as_dict`) answers as the torch model does."""
    worst = max(found, key=lambda n: found[n]["max_difference"])
    text = "; ".join(f"{n}: largest difference of logits {p['max_difference']:.2g} (accepted {p['tolerance']:g})" for n, p in found.items())
    return Check(
        name,
        all(p["passed"] for p in found.values()),
        description=text,
        metadata={
            "max_difference": found[worst]["max_difference"],
            "tolerance": found[worst]["tolerance"],
            "windows": found[worst]["windows"],
        },
    )


def snapshotter_check(path: Path, num_ifos: int, kernel: int, stride: int, batch: int) -> Check:
    """The ONNX snapshotter, called as Triton calls it, cuts the windows that `WindowSnapshotter`'s rule gives."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    stream = np.random.default_rng(0).standard_normal((1, num_ifos, 3 * batch * stride)).astype(np.float32)
    state = np.zeros((1, num_ifos, kernel - stride), np.float32)
    whole = np.concatenate([state, stream], axis=2)[0]
    wanted = np.lib.stride_tricks.sliding_window_view(whole, kernel, axis=1)[:, ::stride].transpose(1, 0, 2)
    equal = True
    for i in range(3):
        update = stream[:, :, i * batch * stride : (i + 1) * batch * stride]
        windows, state = session.run(["windows", "output_state"], {"stream": update, "input_state": state})
        equal &= np.array_equal(windows, wanted[i * batch : (i + 1) * batch])
    return Check("snapshotter_cuts_windows", bool(equal), description=f"{3 * batch} windows of 3 requests compared sample by sample")
