"""Text of the files that `aframe init` writes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

LOCAL_LOGS = """\
# A step's output on the web page is the file that its process writes: logs/RUN/STEP.ATTEMPT.err
compute_logs:
  module: aframe_ops.executor.compute_logs
  class: StepLogManager
"""

DAGSTER_YAML = f"""\
# One host: SQLite on a local disk. Run directories get a copy of this file.
# No pool limits: cores and memory of this machine are handed out by the executor, and a killed run leaves no slot taken.
telemetry:
  enabled: false
nux:
  enabled: false
run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 60
concurrency:
  runs:
    max_concurrent_runs: 1
{LOCAL_LOGS}"""

SHARED_DAGSTER_YAML = """\
# Several machines: PostgreSQL, and nothing that is on this one alone. No password is in this file.
telemetry:
  enabled: false
nux:
  enabled: false
storage:
  postgres:
    postgres_url: {url}
run_monitoring:
  enabled: true
  start_timeout_seconds: 600
  # a run worker that is gone is started again by `aframe run` alone: with more, cancelling a run would not reach its steps
  max_resume_run_attempts: 0
  free_slots_after_run_end_seconds: 60
concurrency:
  runs:
    max_concurrent_runs: 1
{logs}"""

S3_LOGS = """\
# A step's output, for web pages on any machine; endpoint and credentials are AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ..., as for the store.
compute_logs:
  module: aframe_ops.executor.compute_logs_s3
  class: S3StepLogManager
  config:
    bucket: {bucket}
    prefix: {prefix}
    skip_empty_files: true
    upload_interval: 30
"""


def shared_dagster_yaml(url: str | Mapping[str, str], store: str | None) -> str:
    """`dagster.yaml` of a database that several machines use.

    Args:
        url: its address without a password, or ``{"env": NAME}``.
        store: as in `site`; output of steps goes beside a store on S3.
    """
    logs = LOCAL_LOGS
    if store and store.startswith("s3://"):
        bucket, _, prefix = store.removeprefix("s3://").partition("/")
        logs = S3_LOGS.format(bucket=_flow(bucket), prefix=_flow("/".join(filter(None, (prefix.strip("/"), "_logs")))))
    return SHARED_DAGSTER_YAML.format(url=_flow(url), logs=logs)


def _flow(value: Any) -> str:
    """`value` in one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("\n").removesuffix("\n...")


WORKSPACE_YAML = """\
load_from:
  - python_module: aframe_ops.definitions
"""

RUN_SH = """\
#!/usr/bin/env bash
# The whole experiment; the same again continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./env.sh
exec aframe run . "$@"
"""


def experiment(preset: str, overrides: Mapping[str, Any]) -> str:
    """`aframe.yaml`: the preset and what differs from it."""
    text = f"""\
# The experiment: a preset, and only what differs from it.
# `aframe config show` prints every value; AFRAME__SECTION__KEY in the environment overrides this file.
preset: {preset}
"""
    if overrides:
        text += yaml.safe_dump(dict(overrides), sort_keys=False, allow_unicode=True)
    return (
        text
        + """\
# For example:
# inference:
#   cluster_window_length: 4 s
"""
    )


def site(store: str | None, profile: str, variables: Sequence[str] = (), training: str | None = None) -> str:
    """`site.yaml`: where it runs and keeps its results.

    Args:
        variables: what jobs get from the environment besides what they always get.
        training: where the networks and what they are made from are kept instead.
    """
    part = ""
    if training:
        part = f"  {yaml.safe_dump({'training': training}, allow_unicode=True).strip()}   # the networks and what they are made from\n"
    root = yaml.safe_dump({"root": store or "store"}, allow_unicode=True).strip()
    return f"""\
# Where the experiment runs and keeps its results; nothing here changes a result. Paths are relative to this file.
store:
  {root}          # a folder, or s3://bucket/prefix
{part}  # cache_dir: ~/.cache/aframe   # local copies of a remote store's files
  # cache_gb: 20
executor:
  backend: {profile}
  # cores: 2           # for all steps together; default: all of this machine
  # memory_gb: 6
  # max_concurrent: 2  # steps at once
{f"  env: [{', '.join(variables)}]{chr(10)}" if variables else ""}{BATCH.get(profile, "")}"""


SLURM = """\
  # backend: local       # or: only some steps there, the others here
  # routes: {gpus: slurm, inference_results: slurm}
# See docs/clusters.md; nodes need this folder, the store, this Python environment and Dagster's database.
slurm:
  # partition: normal    # each line as your cluster wants it
  # account: my.project
  # gpu: {partition: gpu, types: {a100: 40, h100: 80}}
  # setup: module load python/3.11
  # command: [ssh, login.example.org]   # where sbatch is, if not here
  # wheelhouse: /shared/wheels   # nodes without a network: see docs/offline-nodes.md
  # node_disk: $SLURM_TMPDIR
  signal_seconds: 120    # steps are interrupted so long before their time limit
"""

HTCONDOR = """\
  # backend: local       # or: only some steps there, the others here
  # routes: {gpus: htcondor, inference_results: htcondor}
# See docs/clusters.md and docs/htcondor.md; nodes need this folder, the store, this Python environment and Dagster's database.
htcondor:
  # accounting_group: ligo.dev.o4.cbc.allsky.aframe   # default: $LIGO_GROUP
  # accounting_group_user: albert.einstein            # default: $LIGO_USERNAME
  # container_image: osdf:///igwn/cit/staging/albert.einstein/aframe.sif
  # requirements: HasSingularity
  # gpu: {minimum_capability: 7.0}
  # oauth_services: [scitokens]
  # command: [ssh, login.example.org]   # where condor_submit is, if not here
  signal_seconds: 120    # steps are interrupted so long before their time limit
"""

KUBERNETES = """\
  # backend: local       # or: only some steps there, the others here
  # routes: {gpus: kubernetes}
# See docs/kubernetes.md; pods need Dagster's database, and this folder or a store on S3.
kubernetes:
  image: registry.example.org/aframe:latest   # yours, with this project in it
  # namespace: my-group
  # context: my-cluster  # of the kubeconfig
  # secrets: [s3-credentials]   # their keys are variables of each step
  # code: snapshot       # not the image's: the files of this clone that git tracks
  # git: {repository: 'git@github.com:me/search.git', ref: my-branch, key_file: ~/.ssh/id_ed25519}   # or a commit
  # volumes: [{claim: aframe-runs, path: /runs}]
  # gpu: {tolerations: [{key: nvidia.com/gpu}], products: {NVIDIA-A100-SXM4-80GB: 80}}
"""

BATCH = {"slurm": SLURM, "htcondor": HTCONDOR, "kubernetes": KUBERNETES}
"""What `site` adds for each batch system."""


def activation(prefix: Path, env: Mapping[str, str]) -> str:
    """The shell line that makes this Python environment's programs the first on the path."""
    script = prefix / "bin" / "activate"
    if script.exists():
        return f". {shlex.quote(str(script))}"
    if env.get("CONDA_PREFIX") == str(prefix):
        return f'export PATH={shlex.quote(str(prefix / "bin"))}:"$PATH" CONDA_PREFIX={shlex.quote(str(prefix))}'
    return f'export PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"'


DEV_SWITCH = "DAGSTER_CLI_DEV_USE_LEGACY_CODE_SERVER_BEHAVIOR"
"""Without it `dagster dev` (1.13) hands its children a workspace file beside DAGSTER_MODULE_NAME; they refuse both and hang."""


def environment(variables: Mapping[str, str], activate: str) -> str:
    """`env.sh`."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(
        [
            "# Source this before using `dagster` or `aframe` in this directory: . ./env.sh",
            activate,
            *lines,
            "# `dagster dev` hangs without this when DAGSTER_MODULE_NAME is set.",
            f"export {DEV_SWITCH}=1",
            "",
        ]
    )
