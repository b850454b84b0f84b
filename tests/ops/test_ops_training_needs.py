"""What a training needs of this machine is looked for before anything is made, where it is to run here."""

from __future__ import annotations

import pytest

from aframe_assets.config_load import ConfigError, build_config
from aframe_assets.store import open_store
from aframe_assets.store.workspace import Workspace
from aframe_ops.cli.running import require_trainable
from aframe_ops.site import SiteConfig

WITHOUT_A_KEY = {"tracking": {"loggers": ["wandb"]}}


@pytest.fixture
def looked_at(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)

    def look(training: dict, executor: dict | None = None, until: str | None = None, **model) -> None:
        config = build_config({"preset": "demo", "model": model, "execution": {"training": training}})
        workspace = Workspace(config, open_store(str(tmp_path / "store")))
        site = SiteConfig.model_validate({"directory": tmp_path, "executor": executor or {}})
        require_trainable(workspace, site, {until} if until else set(workspace.graph))

    return look


def test_a_key_package_or_compiler_that_is_not_there_is_told_before_hours_of_data(looked_at, monkeypatch):
    with pytest.raises(ConfigError, match=r"execution.training.tracking.loggers: 'wandb' needs WANDB_API_KEY"):
        looked_at(WITHOUT_A_KEY)
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"'mlflow' is not installed; install the extra \[tracking\]"):
        looked_at({"tracking": {"loggers": ["csv", "mlflow"]}})
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"execution\.training\.compile = True: there is no C"):
        looked_at({"compile": True})


def test_only_trainings_that_are_to_run_here_are_looked_at(looked_at):
    looked_at({})
    looked_at(WITHOUT_A_KEY, until="psd")
    looked_at(WITHOUT_A_KEY, weights="pretrained")
    looked_at(WITHOUT_A_KEY, {"backend": "local", "routes": {"model": "htcondor"}})
    looked_at(WITHOUT_A_KEY | {"gpus": 1}, {"backend": "local", "routes": {"gpus": "slurm"}})
    with pytest.raises(ConfigError, match=r"WANDB_API_KEY"):
        looked_at(WITHOUT_A_KEY, {"backend": "local", "routes": {"gpus": "slurm"}})
