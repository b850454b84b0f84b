"""A model to search with, wherever it is kept, and what is known of searches with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aframe_assets.config_load import ConfigError
from aframe_ops.run_directory import RunDirectory

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.engine.engine import Engine
    from aframe_assets.engine.opening import Device
    from aframe_assets.inference.cascade import Thresholds
    from aframe_assets.inference.detect import SlidEvents
    from aframe_assets.inference.merger_time import Calibration
    from aframe_assets.inference.search_record import SearchRecord


@dataclass(frozen=True)
class Model:
    """A model to search with.

    Attributes:
        engine: its network.
        config: of the run that it comes from; else of its own conditioning, with the rates and windows it was tested with, or
            the defaults.
        calibration: of merger times; nominal where no injection has been recovered with it.
        background: slid events, or None.
        timing: what the calibration rests on, in words.
        rates: what false-alarm rates rest on, in words.
        thresholds: of the run's cascade, or None.
    """

    engine: Engine
    config: Config
    calibration: Calibration
    background: SlidEvents | None
    timing: str
    rates: str
    thresholds: Thresholds | None = None


def open_model(name: str | Path, device: Device = "auto") -> Model:
    """The model `name`: a run directory, a bundle, a folder that holds an exported network or an engine, or 'pretrained'.

    Raises:
        ConfigError, BundleError, OpeningError, SearchRecordError: nothing of that kind, or it is not usable.
    """
    return _of_run(Path(name), device) if (Path(name) / "aframe.yaml").is_file() else _of_folder(str(name), device)


def _of_folder(name: str, device: Device) -> Model:
    from aframe_assets.engine.opening import open_network
    from aframe_assets.inference.search_record import SearchRecord
    from aframe_assets.model.importing import WeightsError, find_bundle

    path = Path(name)
    try:
        folder = path if any((path / f).is_file() for f in ("engine.json", "signature.json")) else find_bundle(name)
    except WeightsError as e:
        raise ConfigError(str(e).replace("model.weights = ", "--model ")) from None
    engine, record = open_network(folder, device), SearchRecord.read(folder)
    config = _config(engine, record)
    if record is None:
        rates = "false alarms need a background: `aframe run` with this model makes one"
        return Model(engine, config, _nominal(engine), None, "not calibrated: a run directory as --model has a calibration", rates)
    rates = (
        f"false alarms are against {record.Tb / 3600:.3g} h of {record.noise}, which the model was tested on: they speak of that noise, "
        "not of the noise in these files"
    )
    return Model(engine, config, record.calibration, record, _timing(record.calibration), rates)


def _config(engine: Engine, record: SearchRecord | None) -> Config:
    from aframe_assets.config import Architecture, Conditioning, Inference
    from aframe_assets.config_load import build_config

    # nothing is trained, fetched or slid with it, so only what scoring reads has to be the model's
    base, own = build_config({"preset": "demo"}), engine.bundle
    architecture = Architecture.model_validate(own["architecture"]) if "architecture" in own else base.model.architecture
    return base.model_copy(
        update={
            "ifos": list(engine.ifos),
            "sample_rate": engine.sample_rate,
            "conditioning": Conditioning.model_validate(engine.conditioning),
            "model": base.model.model_copy(update={"architecture": architecture}),
            "inference": record.inference if record else Inference(),
        }
    )


def _of_run(path: Path, device: Device) -> Model:
    import torch

    from aframe_assets.engine.opening import open_network
    from aframe_assets.inference.aggregate import BACKGROUND
    from aframe_assets.inference.cascade import Thresholds
    from aframe_assets.inference.merger_time import Calibration
    from aframe_assets.model.importing import WeightsError, find_bundle
    from aframe_assets.waveforms.ledger import EventSet

    run = RunDirectory.find(path)
    workspace = run.workspace()
    store, manifest = workspace.store, workspace.store.manifest("engine")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        if manifest is None or manifest.handle is None or manifest.status != "ok" or manifest.blocked:
            raise ConfigError(f"{run.path}: has no usable engine yet; make it with `aframe run {run.path} --until engine`")
        engine = open_network(store.open_local(manifest.handle), "cpu")
    else:
        try:
            engine = open_network(find_bundle(str(run.path)), device)
            if workspace.config.model.filter is not None:
                engine.filter = open_network(find_bundle(str(run.path), "filter_model"), device)
        except WeightsError as e:
            raise ConfigError(str(e).replace("model.weights = ", "--model ")) from None
    events = workspace.complete("events")
    if events is None:
        rates = "false alarms need a search: `aframe run` makes its background"
        return Model(engine, workspace.config, _nominal(engine), None, "not calibrated: that run has recovered no injection yet", rates)
    calibration = Calibration.from_meta(events.meta["merger_time_calibration"])
    background = EventSet.read(store.open_local(events, BACKGROUND))
    thresholds = Thresholds.from_meta(kept) if (kept := events.meta.get("thresholds")) else None
    rates = f"false alarms are against {background.Tb / 3600:.3g} h of that run's background, which is not of these files"
    if not calibration.num:
        timing = "not calibrated: that run has recovered no injection"
        return Model(engine, workspace.config, _nominal(engine), background, timing, rates, thresholds)
    return Model(engine, workspace.config, calibration, background, _timing(calibration), rates, thresholds)


def _nominal(engine: Engine) -> Calibration:
    from aframe_assets.inference.merger_time import Calibration

    return Calibration.nominal(engine.bundle, engine.kernel / engine.sample_rate)


def _timing(calibration: Calibration) -> str:
    return f"calibrated on {calibration.num} injections"
