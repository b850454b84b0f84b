"""Run directories: what `aframe init` writes, and what it leaves alone."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from aframe_assets.config import Architecture
from aframe_assets.config_load import build_config, load_config
from aframe_assets.model import importing
from aframe_assets.model.bundle import save_bundle
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.weight_files import network_of_file, read_weight_file
from aframe_ops.cli.main import app
from aframe_ops.cli.templates import DAGSTER_YAML, activation
from aframe_ops.cli.upstream_init import app as upstream
from aframe_ops.site import load_site

FILES = ["aframe.yaml", "dagster_home/dagster.yaml", "env.sh", "run.sh", "site.yaml", "workspace.yaml"]


def call(*args, program=app):
    return CliRunner().invoke(program, [str(a) for a in args])


def test_files_of_a_new_run_directory(tmp_path):
    run = tmp_path / "my run's dir"
    result = call("init", run, "--preset", "demo")
    assert result.exit_code == 0, result.output
    assert sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) == FILES
    assert yaml.safe_load((run / "aframe.yaml").read_text()) == {"preset": "demo"}
    assert load_config(run / "aframe.yaml", env={}).preset == "demo"
    assert os.stat(run / "run.sh").st_mode & 0o777 == 0o755
    dagster = yaml.safe_load((run / "dagster_home" / "dagster.yaml").read_text())
    assert dagster["telemetry"] == {"enabled": False} and dagster["nux"] == {"enabled": False}
    assert "pools" not in dagster.get("concurrency", {}) and "storage" not in dagster
    site = load_site(run / "site.yaml", env={})
    assert site.store_url == str(run / "store") and site.executor.backend == "local"


def test_a_folder_that_reads_like_a_style_is_named_as_it_is(tmp_path):
    run = tmp_path / "O4 [red]x[/red] [bold]"
    made = call("init", run, "--preset", "demo")
    assert made.exit_code == 0 and made.output.count("O4 [red]x[/red] [bold]") == 2, made.output
    for command in ("status", "plan"):
        told = call(command, run)
        assert told.exit_code == 0 and "[/" not in told.output, told.output
    examined = call("doctor", run)
    assert "[red]x[/red]" in examined.output, examined.output


def test_the_environment_works_from_anywhere_with_spaces_and_quotes_in_the_path(tmp_path):
    run = tmp_path / "my run's $HOME dir"
    call("init", run, "--preset", "demo")
    wanted = '"$DAGSTER_HOME" "$DAGSTER_MODULE_NAME" "$AFRAME_CONFIG" "$(command -v aframe)"'
    shell = f'. {shlex.quote(str(run / "env.sh"))} && printf "%s\\n" {wanted}'
    for sh in ("sh", "bash"):
        done = subprocess.run([sh, "-c", shell], capture_output=True, text=True, cwd="/", check=True)
        home, module, config, program = done.stdout.splitlines()
        assert (home, module, config) == (str(run / "dagster_home"), "aframe_ops.definitions", str(run / "aframe.yaml"))
        assert program.endswith("/bin/aframe")


def test_run_sh_starts_in_its_own_directory(tmp_path):
    run = tmp_path / "a b"
    call("init", run, "--preset", "demo")
    done = subprocess.run([run / "run.sh", "--help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and "--until" in done.stdout


def test_activation_of_other_environments(tmp_path):
    assert activation(tmp_path, {"CONDA_PREFIX": str(tmp_path)}).startswith(f"export PATH={tmp_path}/bin")
    assert activation(tmp_path, {}).startswith("export PATH=/")


def test_again_changes_nothing_but_puts_lost_files_back(tmp_path):
    run = tmp_path / "run"
    call("init", run, "--preset", "demo")
    (run / "aframe.yaml").write_text("preset: demo\ninference: {cluster_window_length: 4}\n")
    (run / "env.sh").unlink()
    before = {f: (run / f).read_bytes() for f in FILES if f != "env.sh"}
    result = call("init", run, "--preset", "demo")
    assert result.exit_code == 0 and "already" in result.output
    assert {f: (run / f).read_bytes() for f in before} == before
    assert (run / "env.sh").exists()


def test_another_experiment_in_the_same_directory_is_refused(tmp_path):
    run = tmp_path / "run"
    call("init", run, "--preset", "demo")
    result = call("init", run, "--preset", "o3")
    assert result.exit_code == 2 and "preset is demo, asked for o3" in result.output
    assert call("init", run, "--preset", "demo", "--store", "s3://bucket/x").exit_code == 2
    assert call("init", run, "--preset", "demo", "--strain", tmp_path).exit_code == 2


def test_strain_weights_and_store(tmp_path):
    (tmp_path / "strain").mkdir()
    (tmp_path / "strain" / "x.hdf5").touch()
    (tmp_path / "weights").mkdir()
    run = tmp_path / "run"
    args = (
        "init",
        run,
        "--preset",
        "events",
        "--strain",
        tmp_path / "strain",
        "--weights",
        tmp_path / "weights",
        "--store",
        "s3://bucket/run",
    )
    result = call(*args)
    assert result.exit_code == 0, result.output
    config = load_config(run / "aframe.yaml", env={})
    assert (config.strain.source, config.segments.source) == ("files", "strain_files")
    assert config.strain.files == [str(tmp_path / "strain")] and config.model.weights == str(tmp_path / "weights")
    assert load_site(run / "site.yaml", env={}).store_url == "s3://bucket/run"
    assert call(*args).exit_code == 0


STREAMING = {"name": "streaming", "layers": [1, 1, 1, 1], "width": 4, "stem_kernel": 15, "stem_stride": 4, "context": 0.3125}


@pytest.mark.parametrize("weights", ["pretrained", "bundle"])
def test_settings_that_the_weights_need_are_written_where_the_preset_has_others(tmp_path, monkeypatch, weights):
    config = build_config({"preset": "demo", "conditioning": {"highpass": 25}, "model": {"architecture": STREAMING}})
    network = build_network(config.model.architecture, Sky.of(config))
    folder = save_bundle(tmp_path / "bundle", network, config, metrics={}, provenance={})
    monkeypatch.setattr(importing, "shipped_folder", lambda: folder)
    (tmp_path / "strain").mkdir()
    run = tmp_path / "run"
    named = "pretrained" if weights == "pretrained" else folder
    args = ("init", run, "--preset", "events", "--strain", tmp_path / "strain", "--weights", named)
    result = call(*args)
    assert result.exit_code == 0, result.output
    written = yaml.safe_load((run / "aframe.yaml").read_text())
    # the preset has the other settings of conditioning already
    assert written["conditioning"] == {"highpass": 25.0} and "ifos" not in written
    assert written["model"]["weights"] == str(named) and written["model"]["architecture"]["context"] == 0.3125
    made = load_config(run / "aframe.yaml", env={})
    assert made.model.architecture == config.model.architecture
    assert importing.check_agreement(importing.find_bundle(made.model.weights), made)["ifos"] == ["H1", "L1"]
    assert "already" in call(*args).output


def test_a_file_of_weights_says_what_it_can_of_its_network(tmp_path):
    network = build_network(Architecture(layers=[1, 2], width=32), Sky(2, 2048.0, ()))
    state = {f"model.{name}": w for name, w in network.state_dict().items()}
    told = {"kernel_length": 1.5, "highpass": 25, "psd_length": 8}
    torch.save({"state_dict": state, "datamodule_hyper_parameters": told}, tmp_path / "x.ckpt")
    run = tmp_path / "run"
    args = ("init", run, "--preset", "events", "--weights", tmp_path / "x.ckpt", "--strain", tmp_path)
    result = call(*args)
    assert result.exit_code == 0, result.output
    written = yaml.safe_load((run / "aframe.yaml").read_text())
    assert written["conditioning"] == {"highpass": 25.0} and written["model"]["weights"] == str(tmp_path / "x.ckpt")
    made = load_config(run / "aframe.yaml", env={})
    assert made.model.architecture.layers == [1, 2] and made.model.architecture.width == 32
    network_of_file(read_weight_file(made.model.weights), made)
    assert "already" in call(*args).output
    # told at once, not by the run
    torch.save({}, tmp_path / "empty.pt")
    result = call("init", tmp_path / "other", "--preset", "events", "--weights", tmp_path / "empty.pt")
    assert result.exit_code == 2 and "has no weights" in result.output and not (tmp_path / "other").exists()
    three = build_network(Architecture(layers=[1], width=16), Sky(3, 2048.0, ()))
    torch.save(three.state_dict(), tmp_path / "three.pt")
    result = call("init", tmp_path / "other", "--preset", "events", "--weights", tmp_path / "three.pt")
    assert result.exit_code == 2 and "a network of 3 detectors" in result.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--preset", "demo", "--strain", "/not/there"], "--strain /not/there: no such file or folder"),
        (["--preset", "demo", "--weights", "/not/there"], "--weights /not/there: no such folder or file"),
        # as of variables that are not set
        (["--preset", "demo", "--weights", ""], "--weights : no such folder or file"),
        (["--preset", "demo", "--strain", ""], "--strain : no such file or folder"),
        (["--preset", "demo", "--database", "postgresql+psycopg2://me:planted@db/x"], "--database env:AFRAME_DATABASE"),
        (["--preset", "demo", "--database", "sqlite:///planted"], "expected env:NAME or postgresql+psycopg2://"),
        (["--preset", "demo", "--database", "postgresql://planted"], "expected env:NAME or postgresql+psycopg2://"),
        (["--preset", "demo", "--database", "env:A B"], "expected the name of a variable"),
        (["--preset", "demo", "--profile", "moon"], "--profile moon: expected one of local"),
        (["--preset", "events"], "strain.files"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, args, words):
    result = call("init", tmp_path / "run", *args)
    assert result.exit_code == 2 and words in result.output
    assert all(line.startswith("aframe: ") for line in result.output.splitlines())
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_told_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = call("init", tmp_path / "file" / "run", "--preset", "demo")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    (line,) = result.output.splitlines()
    assert line.startswith(f"aframe: {tmp_path / 'file' / 'run'}: Not a directory; ")


def test_usage_errors_exit_2(tmp_path):
    assert call("init", tmp_path / "x", "--preset", "nope").exit_code == 2
    assert call("init", tmp_path / "x").exit_code == 2
    assert call("run", tmp_path / "not-there").exit_code == 2
    assert call("nonsense").exit_code == 2


def test_every_command_has_an_example():
    for name, program in (("aframe", app), ("aframe-init", upstream)):
        commands = dict(_commands(typer.main.get_command(program), (name,)))
        assert commands
        for words, command in commands.items():
            assert command.hidden or f"Example: {' '.join(words)}" in (command.epilog or ""), words


def _commands(group, words):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))
        else:
            yield (*words, name), command


def test_the_shipped_dagster_home_is_the_same():
    shipped = Path(__file__).resolve().parents[2] / "dagster_home" / "dagster.yaml"
    assert yaml.safe_load(shipped.read_text()) == yaml.safe_load(DAGSTER_YAML)


@pytest.mark.parametrize(("mode", "preset"), [("sandbox", "o3"), ("tune", "tune"), ("review", "review")])
def test_upstream_spelling(tmp_path, mode, preset):
    run = tmp_path / mode
    assert call("offline", "--mode", mode, "-d", run, "--s3-bucket", "s3://b/x", program=upstream).exit_code == 0
    assert load_config(run / "aframe.yaml", env={}).preset == preset
    # as there: what trains is in the bucket, the rest in the directory
    assert load_site(run / "site.yaml", env={}).store_url == f"{run / 'store'}#training=s3://b/x"
    assert call("offline", "--mode", mode, "-d", run, "--s3-bucket", "s3://b/x", program=upstream).exit_code == 0


@pytest.mark.parametrize(("options", "preset"), [((), "o3"), (("--preset", "small"), "small"), (("--preset", "review"), "review")])
def test_snakemakes_spelling(tmp_path, options, preset):
    run = tmp_path / "run"
    assert call("snakemake", "-d", run, *options, program=upstream).exit_code == 0
    assert load_config(run / "aframe.yaml", env={}).preset == preset and (run / "run.sh").exists()


def test_the_online_search_is_refused_whatever_its_options(tmp_path):
    result = call("online", "-d", tmp_path / "run", "--weights-dir", "x", program=upstream)
    assert result.exit_code == 2 and "no online search here" in result.output and not (tmp_path / "run").exists()


def test_upstream_variables(tmp_path, monkeypatch):
    for name in ("train", "test", "results"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("AFRAME_TRAIN_BACKGROUND_DIR", str(tmp_path / "train"))
    monkeypatch.setenv("AFRAME_TEST_BACKGROUND_DIR", str(tmp_path / "test"))
    monkeypatch.setenv("AFRAME_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("LIGO_USERNAME", "albert.einstein")
    monkeypatch.setenv("LIGO_GROUP", "ligo.dev.o4.cbc")
    run = tmp_path / "run"
    result = call("offline", "-d", run, program=upstream)
    assert result.exit_code == 0, result.output
    assert load_config(run / "aframe.yaml", env={}).strain.files == [str(tmp_path / "train"), str(tmp_path / "test")]
    assert load_site(run / "site.yaml", env={}).store_url == str(tmp_path / "results")
    assert "export LIGO_USERNAME=albert.einstein" in (run / "env.sh").read_text()


def test_upstream_bucket_must_be_s3(tmp_path):
    result = call("offline", "-d", tmp_path / "run", "--s3-bucket", "bucket", program=upstream)
    assert result.exit_code == 2 and "begins with s3://" in result.output


def test_a_shared_database_is_written_by_reference(tmp_path):
    run = tmp_path / "run"
    args = ("init", run, "--preset", "demo", "--database", "env:MY_DATABASE", "--store", "s3://bucket/a b/run", "--profile", "slurm")
    assert call(*args).exit_code == 0
    dagster = yaml.safe_load((run / "dagster_home" / "dagster.yaml").read_text())
    assert dagster["storage"] == {"postgres": {"postgres_url": {"env": "MY_DATABASE"}}}
    assert dagster["run_monitoring"]["max_resume_run_attempts"] == 0 and dagster["nux"] == {"enabled": False}
    assert dagster["compute_logs"]["class"] == "S3StepLogManager"
    logs = dagster["compute_logs"]["config"]
    assert (logs["bucket"], logs["prefix"]) == ("bucket", "a b/run/_logs")
    assert load_site(run / "site.yaml", env={}).executor.env == ["MY_DATABASE"]
    assert "export DAGSTER_EVENT_BATCH_SIZE=500" in (run / "env.sh").read_text()
    assert "already" in call(*args).output
    result = call("init", run, "--preset", "demo", "--database", "env:OTHER")
    assert result.exit_code == 2 and "has another database than --database" in result.output


@pytest.mark.parametrize("rest", ["u:ge/planted@eim1@h/x", "u:planted@h/x", "h/x?password=planted", "h/x?sslmode=require&passfile=planted"])
def test_a_password_in_an_address_is_refused_and_written_nowhere(tmp_path, rest):
    result = call("init", tmp_path / "run", "--preset", "demo", "--database", f"postgresql+psycopg2://{rest}")
    assert result.exit_code == 2 and "--database env:AFRAME_DATABASE" in result.output and "planted" not in result.output
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and "planted" in p.read_text()]


def test_a_shared_database_without_a_password_is_written_as_it_is(tmp_path):
    for text in ("postgresql://me@db.example.org:5433/search", "postgresql+psycopg2://me@db.example.org:5433/search"):
        run = tmp_path / text.partition(":")[0]
        assert call("init", run, "--preset", "demo", "--database", text).exit_code == 0
        dagster = yaml.safe_load((run / "dagster_home" / "dagster.yaml").read_text())
        assert dagster["storage"]["postgres"]["postgres_url"] == "postgresql+psycopg2://me@db.example.org:5433/search"
        assert dagster["compute_logs"]["class"] == "StepLogManager"
        assert load_site(run / "site.yaml", env={}).executor.env == []
