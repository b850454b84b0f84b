"""What loggers are told, that a resumed training goes on with the same run, and that no key is written anywhere."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import pytest
from lightning.pytorch.loggers import Logger
from pydantic import ValidationError

from aframe_assets.config_tracking import Tracking
from aframe_assets.model import tracking
from aframe_assets.store.files import collect

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MLFLOW_TRACKING_PASSWORD": "hush-hush-password",
}
MISSING = "the extra [tracking] is not installed"


def tracked(config, **values):
    training = config.execution.training.model_copy(update={"tracking": Tracking(**values)})
    return config.model_copy(update={"execution": config.execution.model_copy(update={"training": training})})


def run(config, data, workdir: Path, **more):
    return data.train(config, workdir, **more)


@pytest.fixture
def secrets(monkeypatch, tmp_path):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))


def assert_no_secret(folder: Path) -> None:
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in data], path


def test_mlflow_has_one_run_for_all_tries_of_a_training(tiny_config, tiny_data, tmp_path, secrets):
    pytest.importorskip("mlflow", reason=MISSING)
    from mlflow.tracking import MlflowClient

    values = {"loggers": ["csv", "mlflow"], "project": "tries", "group": "tests", "tags": ["tiny"]}
    run(tracked(tiny_config(), **values), tiny_data, tmp_path, until=1)
    result = run(tracked(tiny_config(), **values), tiny_data, tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("tries").experiment_id])
    assert found.info.status == "FINISHED" and found.data.tags["group"] == "tests" and "tiny" in found.data.tags
    assert found.data.params["training/learning_rate"] == "0.003"
    scores = {m.step: m.value for m in client.get_metric_history(found.info.run_id, "valid_auroc")}
    assert list(scores.values()) == pytest.approx([r["valid_auroc"] for r in result.history])
    assert_no_secret(tmp_path)


def test_wandb_offline_writes_files_and_no_key(tiny_config, tiny_data, tmp_path, secrets):
    pytest.importorskip("wandb", reason=MISSING)
    config = tracked(tiny_config(max_epochs=1), loggers=["wandb"], offline=True)
    result = run(config, tiny_data, tmp_path)
    assert not [p for p in result.logs.rglob("*") if p.is_symlink()]
    (written,) = (tmp_path / "logs" / "wandb").glob("offline-run-*/*.wandb")
    assert b"valid_auroc" in written.read_bytes() and b"learning_rate" in written.read_bytes()
    assert_no_secret(tmp_path)


def test_links_that_a_logger_leaves_do_not_keep_the_logs_from_being_published(tiny_config, tiny_data, tmp_path):
    # as W&B makes them, of a try that was killed as well
    of_wandb, elsewhere = tmp_path / "logs" / "wandb", tmp_path / "cache.log"
    (of_wandb / "offline-run-1" / "logs").mkdir(parents=True)
    (of_wandb / "offline-run-1" / "run.wandb").write_text("figures")
    elsewhere.write_text("of this machine")
    (of_wandb / "latest-run").symlink_to("offline-run-1")
    (of_wandb / "offline-run-1" / "logs" / "debug-core.log").symlink_to(elsewhere)
    result = run(tiny_config(max_epochs=1), tiny_data, tmp_path)
    published = collect(result.logs, "model_logs")
    assert "wandb/offline-run-1/run.wandb" in published and not [name for name in published if "latest" in name or "core" in name]
    assert elsewhere.exists()


def test_what_is_missing_is_told_before_anything_is_trained(tiny_config, tiny_data, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="needs WANDB_API_KEY in the environment"):
        run(tracked(tiny_config(), loggers=["wandb"]), tiny_data, tmp_path)
    for name in ("wandb", "mlflow", "mlflow.tracking"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(ValueError, match=rf"'{name}' is not installed; install the extra \[tracking\]"):
            run(tracked(tiny_config(), loggers=[name], offline=True), tiny_data, tmp_path)


def test_a_server_that_is_not_there_is_told_soon_and_without_its_password(tiny_config, tiny_data, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason=MISSING)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:hush@127.0.0.1:{s.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ValueError, match="the MLflow server does not take this training") as caught:
            run(tracked(tiny_config(), loggers=["mlflow"]), tiny_data, tmp_path)
    assert "hush" not in str(caught.value) and time.monotonic() - start < 60


def test_a_server_that_is_lost_ends_nothing_and_is_asked_again(monkeypatch, caplog):
    class Lost(Logger):
        name, version, asked, gone = "lost", 0, 0, True

        def log_metrics(self, metrics, step=None):
            self.asked += 1
            if self.gone:
                raise ConnectionError("http://somebody:hush@server does not answer\nand more")

        def log_hyperparams(self, params):
            raise AssertionError("not asked while the server is left alone")

    logger = tracking.Tolerant(Lost(), logging.getLogger("test"))
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"a": 1.0}, 1)
        logger.log_metrics({"a": 1.0}, 2)
        logger.log_hyperparams({})
    assert logger.inner.asked == 1 and len(caplog.messages) == 1 and "hush" not in caplog.text
    logger.inner.gone, logger._until = False, 0.0
    logger.log_metrics({"a": 1.0}, 3)
    logger.log_metrics({"a": 1.0}, 4)
    assert logger.inner.asked == 3


def test_a_logger_named_twice_is_refused():
    with pytest.raises(ValidationError, match="expected each logger once"):
        Tracking(loggers=["csv", "csv"])


def test_a_password_in_the_experiment_is_refused():
    with pytest.raises(ValidationError, match="set MLFLOW_TRACKING_USERNAME"):
        Tracking(mlflow_uri="https://somebody:hush@mlflow.example.org")
    assert Tracking(mlflow_uri="https://mlflow.example.org").mlflow_uri
