"""Files for a deployment on Kubernetes: neither Helm nor an API server is here, so keys, names and rights are compared with records."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance

REPO = Path(__file__).resolve().parents[2]
VALUES = yaml.safe_load((REPO / "deploy" / "helm-values.yaml").read_text())
ROLE, BINDING = yaml.safe_load_all((REPO / "deploy" / "step-jobs-role.yaml").read_text())


def unknown(values: Any, known: Any, place: str = "") -> list[str]:
    """Places of keys in `values` that `known` does not have."""
    if isinstance(values, dict) and isinstance(known, dict):
        return [
            found
            for key, value in values.items()
            for found in ([f"{place}{key}"] if key not in known else unknown(value, known[key], f"{place}{key}."))
        ]
    if isinstance(values, list) and isinstance(known, list):
        return [found for i, value in enumerate(values) for found in unknown(value, known[0], f"{place}{i}.")]
    return []


def test_keys_are_those_of_the_chart():
    known = yaml.safe_load(Path(__file__).with_name("helm_keys.yaml").read_text())
    assert not unknown(VALUES, known)
    for key in ("dagsterWebserver", "dagsterDaemon", "dagster-user-deployments"):
        spoilt = {**VALUES, key: {**VALUES[key], "imageTag": 1}}
        assert unknown(spoilt, known) == [f"{key}.imageTag"]


def test_what_dagster_reads_of_it_is_what_dagster_takes(tmp_path, monkeypatch):
    """The parts of `dagster.yaml` that the chart copies, read by Dagster itself."""
    logs = VALUES["computeLogManager"]["config"]["customComputeLogManager"]
    monitoring = VALUES["dagsterDaemon"]["runMonitoring"]
    snake = {re.sub("[A-Z]", lambda m: "_" + m[0].lower(), key): value for key, value in monitoring.items()}
    (tmp_path / "dagster.yaml").write_text(
        yaml.safe_dump(
            {"compute_logs": logs, "run_monitoring": snake, "telemetry": VALUES["telemetry"], **VALUES["additionalInstanceConfig"]}
        )
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert type(instance.compute_log_manager).__name__ == "S3StepLogManager"
        assert instance.run_monitoring_max_resume_run_attempts == 0 and not instance.telemetry_enabled
        assert instance.nux_enabled is False


def test_the_code_location_and_its_account():
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    assert code["dagsterApiGrpcArgs"][0] == "-m" and importlib.util.find_spec(code["dagsterApiGrpcArgs"][1])
    env = {e["name"]: e["value"] for e in code["env"]}
    assert any(Path(env["AFRAME_CONFIG"]).is_relative_to(mount["mountPath"]) for mount in code["volumeMounts"])
    assert {m["name"] for m in code["volumeMounts"]} == {v["name"] for v in code["volumes"]}
    (subject,) = BINDING["subjects"]
    assert subject["name"] == VALUES["global"]["serviceAccountName"] and BINDING["roleRef"]["name"] == ROLE["metadata"]["name"]


def test_the_role_has_the_rights_that_the_page_lists_and_no_others():
    page = (REPO / "docs" / "kubernetes.md").read_text()
    rights = {(resource, verb) for rule in ROLE["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    listed = set()
    for resources, verbs in re.findall(r"^\| (`(?:jobs|secrets|pods|events)`.*?) \| (.*?) \|$", page, re.MULTILINE):
        names = re.findall("`([a-z/]+)`", resources)[: 1 if "batch" in resources else 2]
        groups = [group.split("(")[0] for group in verbs.split(";")]
        for name, group in zip(names, groups if len(groups) == len(names) else groups * len(names), strict=True):
            listed |= {(name, verb.strip()) for verb in group.split(",")}
    assert listed and rights == listed


def test_no_secret_is_in_the_files():
    text = (REPO / "deploy" / "helm-values.yaml").read_text() + (REPO / "deploy" / "step-jobs-role.yaml").read_text()
    assert not re.search(r"(?i)password:|secret_access_key:|token:", text)
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for manifest in (ROLE, BINDING):
        kubernetes_validate.validate(manifest, "1.34", strict=True)
