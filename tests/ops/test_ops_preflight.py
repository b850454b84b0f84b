"""Files that an experiment names are read before anything starts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from aframe_assets.config_load import build_config, load_config
from aframe_assets.preflight import preflight
from aframe_assets.waveforms.prior_files import packaged
from aframe_assets.waveforms.priors import get_prior, require_possible
from aframe_ops.cli import running
from aframe_ops.cli.main import app

SKY = "redshift = UniformSourceFrame(minimum=0, maximum=1)\ndec = Cosine()\nra = Uniform(0, 2 * np.pi)\n"
MASSES = "mass_1_source = Uniform(30, 50)\nmass_2_source = Uniform(10, 30)\n"
SITE = "longitude = 9\nelevation = 50\nxarm_azimuth = 70\nyarm_azimuth = 160\n"


BAD = {
    "vetoes.files missing": ({}, {"vetoes": {"files": {"H1": ["no.txt"]}}}, "vetoes.files.H1: .*no.txt: no such segment list"),
    "vetoes.files broken": ({"a.txt": "junk\n"}, {"vetoes": {"files": {"H1": ["a.txt"]}}}, "a.txt: not a segment list: line 1"),
    "vetoes.files of a library": ({"a.xml": "junk\n"}, {"vetoes": {"files": {"H1": ["a.xml"]}}}, "vetoes.files.H1: .*a.xml"),
    "vetoes.gates missing": ({}, {"vetoes": {"gates": {"L1": "no.txt"}}}, "vetoes.gates.L1: .*no such file of gates"),
    "vetoes.gates broken": ({"g.txt": "1 2\n"}, {"vetoes": {"gates": {"L1": "g.txt"}}}, "g.txt, line 1: '1 2'"),
    "vetoes.catalog missing": ({}, {"vetoes": {"catalog": "no.csv"}}, "vetoes.catalog: event catalogue no.csv does not exist"),
    "vetoes.catalog broken": ({"c.csv": "a,b\n1,2\n"}, {"vetoes": {"catalog": "c.csv"}}, "vetoes.catalog: .*no GPS column"),
    "exclude_catalog missing": ({}, {"inference": {"exclude_catalog": "no.csv"}}, "inference.exclude_catalog: .*does not exist"),
    "sensitivity.catalog of several": (
        {"c.csv": "name,gps\nx,soon\n"},
        {"sensitivity": {"catalog": ["packaged", "c.csv", "no.csv"]}},
        "sensitivity.catalog: .*c.csv, line 2: GPS time 'soon'",
    ),
    "catalogue that is no text": ({"c.csv": b"\xff\xfe\x00"}, {"sensitivity": {"catalog": "c.csv"}}, "cannot be read as text"),
    "geometry junk": ({"V1.site": "junk\n"}, {"detectors": {"H1": "V1.site"}}, "detectors.H1: .*V1.site, line 1: 'junk'"),
    "geometry without latitude": ({"V1.site": SITE}, {"detectors": {"H1": "V1.site"}}, "detectors.H1: .*lacks latitude"),
    "bounds": ({"p.prior": "mass_1 = Uniform(50, 20)\nmass_2 = Uniform(10, 30)\n" + SKY}, {}, "line 1: bilby cannot make mass_1"),
    "sigma": ({"p.prior": "mass_1 = Gaussian(50, -2)\nmass_2 = Uniform(10, 30)\n" + SKY}, {}, "mass_1 has sigma = -2"),
    "infinite": ({"p.prior": "mass_1 = Uniform(5, 1e400)\nmass_2 = Uniform(10, 30)\n" + SKY}, {}, "waveforms.prior: .*mass_1 .*finite"),
    "masses": ({"p.prior": "mass_1 = Uniform(30, 50)\nmass_2 = Uniform(-5, 30)\n" + SKY}, {}, "mass_2 is drawn from -5 to 30"),
    "masses beside a constraint": (
        {"p.prior": "mass_1 = Uniform(30, 50)\nmass_2 = Uniform(-5, 30)\nmass_ratio = Constraint(0.02, 1)\n" + SKY},
        {},
        "mass_2 is drawn from -5 to",
    ),
    "redshift": ({"p.prior": MASSES + SKY.replace("minimum=0", "minimum=-1")}, {}, "waveforms.prior: .*redshift"),
    "redshift of numbers": ({"p.prior": MASSES + "redshift = Uniform(-1, 1)\n"}, {}, "redshift is drawn from -1 to 1"),
    "spins": ({"p.prior": MASSES + SKY + "a_1 = Uniform(0, 3)\n"}, {}, "a_1 is drawn from 0 to 3; expected spins"),
    "pairs beyond an edge": (
        {},
        {"injections": {"prior": "end_o3_ratesandpops"}, "sensitivity": {"mass_combos": [[1.4, 1.4]]}},
        r"mass_combos: \(1\.4, 1\.4\): the population",
    ),
    "pairs outside the prior": ({}, {"sensitivity": {"mass_combos": [[35, 35], [900, 800]]}}, r"mass_combos: \(900, 800\): the population"),
}


def experiment(folder: Path, files: dict, over: dict) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        if name == "p.prior":
            over = {"waveforms": {"prior": name}}
    (folder / "aframe.yaml").write_text(yaml.safe_dump({"preset": "demo", **over}))
    (folder / "site.yaml").write_text("{}\n")
    return folder


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_before_anything_starts(case, tmp_path, monkeypatch):
    files, over, message = BAD[case]
    run = experiment(tmp_path / "run", files, over)
    for name in ("AFRAME_CONFIG", "AFRAME_SITE", "DAGSTER_HOME", "DAGSTER_MODULE_NAME"):
        monkeypatch.setenv(name, "")  # what a run sets is undone
    monkeypatch.setattr(running, "open_instance", lambda run: pytest.fail("Dagster was started"))
    for command in ("plan", "run"):
        done = CliRunner().invoke(app, [command, str(run)])
        assert done.exit_code == 2, done.output
        assert all(line.startswith("aframe: ") for line in done.output.splitlines()), done.output
        assert re.search(message, done.output), done.output
    assert not (run / "store").exists() or not any(p.is_file() for p in (run / "store").rglob("*"))


def test_all_problems_are_told_at_once(tmp_path):
    over = {"vetoes": {"gates": {"H1": "no.txt"}, "catalog": "no.csv"}, "sensitivity": {"catalog": ["a.csv", "b.csv"]}}
    found = preflight(load_config(experiment(tmp_path / "run", {}, over) / "aframe.yaml", env={}))
    assert [line.partition(":")[0] for line in found] == ["vetoes.gates.H1", "vetoes.catalog", "sensitivity.catalog", "sensitivity.catalog"]


def test_good_files_pass(tmp_path):
    files = {
        "v.txt": "1240610000 1240610010\n",
        "g.txt": "1240610100 0.5 0.25\n",
        "c.csv": "name,gps\nx,1240610200\n",
        "V1.site": "latitude = 43\n" + SITE,
        "p.prior": MASSES + SKY,
    }
    over = {
        "vetoes": {"files": {"H1": ["v.txt"]}, "gates": {"L1": "g.txt"}, "catalog": "c.csv"},
        "inference": {"exclude_catalog": "c.csv"},
        "sensitivity": {"catalog": ["packaged", "c.csv"], "mass_combos": [[40, 20]]},
        "detectors": {"H1": "V1.site"},
        "injections": {"prior": "p.prior"},
    }
    run = experiment(tmp_path / "run", files, {})
    (run / "aframe.yaml").write_text(yaml.safe_dump({"preset": "demo", **over}))
    assert preflight(load_config(run / "aframe.yaml", env={})) == []


@pytest.mark.parametrize("name", [n for n in packaged() if n != "ringdown_prior"])  # which has no masses
def test_every_named_population_is_possible(name):
    prior = get_prior(name)
    require_possible(prior)
    drawn = prior.sample(1000, 3)
    assert all(np.isfinite(v).all() for v in drawn.values())
    assert all((drawn[k] > 0).all() for k in ("mass_1", "mass_2", "redshift"))


@pytest.mark.parametrize("pairs", [[], [[0, 0]], [[20, -5]], [[20, 35]]])
def test_impossible_mass_pairs_are_refused(pairs):
    with pytest.raises(ValueError, match=r"sensitivity\.mass_combos"):
        build_config({"preset": "demo", "sensitivity": {"mass_combos": pairs}})


def test_an_experiment_that_names_no_file_imports_nothing_heavy():
    code = (
        "import sys; from aframe_assets.config_load import build_config; from aframe_assets.preflight import preflight; "
        "assert preflight(build_config({'preset': 'demo'})) == []; "
        "assert not {'bilby', 'scipy', 'gwpy', 'pandas', 'torch', 'lal', 'astropy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
