"""Checks of this room's assets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aframe_assets.store.job import Check, Declared

if TYPE_CHECKING:
    from pathlib import Path

    import onnxruntime

    from aframe_assets.engine.signature import Signature

WHITENING_TOLERANCE = 1e-5
"""Of the largest whitened value: rounding of float32, and of transforms that differ in length."""

_PARITY = "Largest difference of logits from the torch network below the tolerance, rank correlation at or above its floor, no event lost."
EXPORTED_CHECKS = [Declared("exported_equals_torch", True, _PARITY)]
ENGINE_CHECKS = [Declared("engine_equals_torch", True, _PARITY)]
REPOSITORY_CHECKS = [
    Declared("snapshotters_cut_streams", True, "Requests in a row give what is cut from the whole stream, sample by sample."),
    Declared(
        "preprocessor_equals_whitener",
        True,
        f"Largest difference from the search's own windows below {WHITENING_TOLERANCE:g} of the largest value.",
    ),
]


def parity_check(name: str, found: Mapping[str, Mapping[str, Any]]) -> Check:
    """Every form in `found` (name -> `Parity.as_dict`) answers as the torch model does."""
    worst = max(found, key=lambda n: found[n]["max_difference"])
    text = "; ".join(
        f"{n}: largest difference of logits {p['max_difference']:.2g} (accepted {p['tolerance']:g}), rank correlation "
        f"{p['rank_correlation']:.6f} (at least {p['rank_floor']:g}), {p['events_lost']} of {p['events']} events lost"
        for n, p in found.items()
    )
    return Check(
        name,
        all(p["passed"] for p in found.values()),
        description=text,
        metadata={
            "max_difference": found[worst]["max_difference"],
            "tolerance": found[worst]["tolerance"],
            "windows": found[worst]["windows"],
            "rank_correlation": min(p["rank_correlation"] for p in found.values()),
            "events_lost": sum(p["events_lost"] for p in found.values()),
        },
    )


def snapshotter_check(repository: Path) -> Check:
    """Both snapshotters of a repository, called as Triton calls them, give what is cut from the whole streams."""
    import numpy as np

    from aframe_assets.engine.repository import SNAPSHOTTER, WHITENED_SNAPSHOTTER

    equal, requests = True, 3
    for name in (SNAPSHOTTER, WHITENED_SNAPSHOTTER):
        session = _session(repository, name)
        rows, ifos, update = session.get_inputs()[0].shape
        output = session.get_outputs()[0]
        state = np.zeros(session.get_inputs()[1].shape, np.float32)
        stream = np.random.default_rng(0).standard_normal((rows, ifos, requests * update)).astype(np.float32)
        whole = np.concatenate([state, stream], axis=2)
        for i in range(requests):
            answer, state = session.run(None, {"stream": stream[:, :, i * update : (i + 1) * update], "input_state": state})
            wanted = whole[:, :, i * update : i * update + state.shape[2] + update]
            if name == WHITENED_SNAPSHOTTER:
                batch, _, window = output.shape
                wanted = np.lib.stride_tricks.sliding_window_view(wanted[0], window, axis=1)[:, :: update // batch].transpose(1, 0, 2)
            equal &= np.array_equal(answer, wanted)
    return Check("snapshotters_cut_streams", bool(equal), description=f"{requests} requests of each compared sample by sample")


def preprocessor_check(repository: Path, signature: Signature, stride: int) -> Check:
    """The repository's preprocessor gives the windows that `Whitener` gives, to float rounding.

    On white noise of a detector's level with a sine and, in the row that is whitened, a burst that the PSD does not know.
    """
    import numpy as np
    import torch

    from aframe_assets.config import Conditioning
    from aframe_assets.engine.repository import PREPROCESSOR
    from aframe_assets.strain.conditioning import Whitener

    session = _session(repository, PREPROCESSOR)
    strain = np.random.default_rng(0).standard_normal(session.get_inputs()[0].shape)
    strain[0] = strain[1] = strain[0] + 3 * np.sin(np.arange(strain.shape[2]) * 0.3)
    strain[1, :, -signature.window :] += 5 * np.hanning(signature.window)
    strain = (strain * 1e-22).astype(np.float32)
    (windows,) = session.run(None, {"strain": strain})
    whitener = Whitener(Conditioning.model_validate(signature.conditioning), signature.sample_rate)
    split = round(whitener.psd_length * signature.sample_rate)
    background, data = torch.from_numpy(strain).double()
    whitened = whitener.whiten(data[:, split:], whitener.psd(background[:, :split])).numpy()
    wanted = np.lib.stride_tricks.sliding_window_view(whitened, signature.window, axis=1)[:, ::stride].transpose(1, 0, 2)
    shape = windows.shape == wanted.shape
    off = float(np.abs(windows - wanted).max() / np.abs(wanted).max()) if shape else float("inf")
    return Check(
        "preprocessor_equals_whitener",
        off < WHITENING_TOLERANCE,
        description=f"largest difference {off:.2g} of the largest value (accepted {WHITENING_TOLERANCE:g})",
        metadata={"relative_difference": off, "windows": len(windows)},
    )


def _session(repository: Path, model: str) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(repository / model / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])
