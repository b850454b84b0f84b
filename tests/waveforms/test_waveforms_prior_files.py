"""Populations as files: packaged ones and copies, what bilby reads in them, what is refused, mixtures, frames as types."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from bilby.core.prior import ConditionalPriorDict, Constraint, DeltaFunction

from aframe_assets.config_load import ConfigError, build_config, load_config
from aframe_assets.sensitivity.population import Population
from aframe_assets.store import open_store
from aframe_assets.store.workspace import Workspace
from aframe_assets.waveforms import prior_files
from aframe_assets.waveforms.frames import DetectorFrame, SourceFrame
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.ledger import SIGNAL, WaveformPolarizationSet
from aframe_assets.waveforms.prior_files import packaged, parse
from aframe_assets.waveforms.priors import get_prior

REFERENCE = {
    "end_o3_ratesandpops",
    "end_o3_ratesandpops_bns",
    "nonspin_bbh",
    "spin_bbh",
    "gaussian_masses",
    "log_normal_masses",
    "ringdown_prior",
    "training_prior",
    "demo_training",
    "demo_mixture",
}
NAMES = sorted(set(packaged()) - {"ringdown_prior"})
MASSES = "mass_1 = Uniform(20, 30)\nmass_2 = Uniform(5, 10)\n"
SOURCE_MASSES = MASSES.replace(" =", "_source =")
REDSHIFT = "redshift = UniformSourceFrame(0, 1)\n"


def test_every_population_of_the_reference_is_packaged():
    assert set(packaged()) >= REFERENCE


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_draws_what_the_name_draws(name, tmp_path):
    copy = shutil.copy(packaged()[name], tmp_path / "mine.prior")
    named, mine = get_prior(name), get_prior(str(copy))
    assert (named.frame, named.redshift_kind) == (mine.frame, mine.redshift_kind)
    a, b = named.sample(300, 3), mine.sample(300, 3)
    assert type(a) is type(b) and list(a) == list(b)
    assert all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", [n for n, p in packaged().items() if "\n[" not in p.read_text()])
def test_bilby_itself_reads_them_with_the_same_meaning(name):
    theirs = ConditionalPriorDict(str(packaged()[name]), conversion_function=lambda x: x)
    if name == "ringdown_prior":
        # reference 2.3
        assert (theirs["quality"].minimum, theirs["quality"].maximum) == (8, 20)
        assert (theirs["frequency"].minimum, theirs["frequency"].maximum) == (100, 1000)
        assert (theirs["luminosity_distance"].minimum, theirs["luminosity_distance"].maximum) == pytest.approx((100, 1000))
        return
    ours = get_prior(name).components[0].priors
    suffix = "_source" if get_prior(name).frame == "source" else ""
    assert [k.removesuffix("_source") for k in theirs] == list(ours)
    assert {k for k in theirs if k.endswith("_source")} == ({"mass_1_source", "mass_2_source"} if suffix else set())
    u = np.linspace(0.01, 0.99, 20)
    for key, prior in theirs.items():
        mine = ours[key.removesuffix("_source")]
        if isinstance(prior, Constraint):
            assert (mine.minimum, mine.maximum) == (prior.minimum, prior.maximum)
        elif isinstance(prior, DeltaFunction):
            assert mine.peak == prior.peak
        elif hasattr(prior, "condition_func"):
            (given,) = prior.required_variables
            assert given == f"mass_1{suffix}"
            x = np.full(20, theirs[given].maximum * 0.7)
            assert np.array_equal(mine.rescale(u, mass_1=x), prior.rescale(u, **{given: x}))
        else:
            assert np.array_equal(mine.rescale(u), prior.rescale(u))


def test_an_edited_file_is_read_anew(tmp_path):
    path = tmp_path / "mine.prior"
    path.write_text(MASSES + REDSHIFT)
    assert get_prior(str(path)).sample(50, 1)["mass_1"].max() <= 30
    path.write_text(MASSES.replace("20, 30", "40, 50") + REDSHIFT)
    assert get_prior(str(path)).sample(50, 1)["mass_1"].min() >= 40


def test_what_a_file_may_hold(tmp_path):
    path = tmp_path / "mine.prior"
    path.write_text(
        "# bilby's long names, arithmetic, labels, a number, a list\n"
        "mass_1 = bilby.core.prior.analytical.LogNormal(mu=np.log(30), sigma=0.2, latex_label='$m_1$', unit='$M_{\\odot}$')\n"
        "mass_2 = bilby.core.prior.ConditionalUniform(condition_func=bilby.gw.prior.secondary_mass_condition_function, minimum=5, "
        "maximum=100)  # below mass_1\n"
        "luminosity_distance = PowerLaw(\n    alpha=2, minimum=100, maximum=4e2 * 5\n)\n"
        "ra = Uniform(minimum=-np.pi / 2, maximum=pi, boundary='periodic')\n"
        "dec = 0.5\n"
        "a_1 = Interped(xx=[0, 0.5, 0.9], yy=[1, 1, 0], minimum=0, maximum=0.9)\n"
    )
    prior = get_prior(str(path))
    s = prior.sample(2000, 1)
    assert np.median(s["mass_1"]) == pytest.approx(30, rel=0.02) and (s["mass_2"] <= s["mass_1"]).all()
    assert (s["dec"] == 0.5).all() and (s["a_2"] == 0).all() and s["a_1"].max() < 0.9
    assert s["ra"].min() >= -np.pi / 2 and s["ra"].max() <= np.pi
    # what is not a prior of bilby over redshift has its range too
    assert prior.redshift_range == pytest.approx((0.0221, 0.3637), abs=1e-3) and prior.redshift_kind == "other"


ATTACKS = (
    "__import__('os').system('touch MARK')",
    "Uniform(minimum=__import__('os').system('touch MARK'), maximum=2)",
    "Uniform(minimum=open('MARK', 'w').close(), maximum=2)",
    "os.system('touch MARK')",
    "evil.Uniform(minimum=1, maximum=2)",
    "bilby.evil.Uniform(minimum=1, maximum=2)",
    "ConditionalUniform(condition_func=evil.run, minimum=1, maximum=2)",
    "ConditionalUniform(condition_func='evil.run', minimum=1, maximum=2)",
    "ConditionalUniform(condition_func=lambda r, mass_1: open('MARK', 'w'), minimum=1, maximum=2)",
    "Uniform(minimum=1, maximum=evil.LIMIT)",
    "Uniform(minimum=1, maximum=[x for x in (1, 2)][0])",
    "Uniform(minimum=1, maximum=9**9**9)",
    "Uniform(minimum=1, maximum='a' * 10**9)",
    "Uniform(minimum=1, maximum=np.exp(evil.run()))",
    "Uniform(minimum=1, maximum=np.log(evil.run()))",
    "Uniform(**{'minimum': 1})",
    "Uniform(*[1, 2])",
    "Uniform(1, 2).__class__(3, 4)",
    "(lambda: Uniform(1, 2))()",
    "FromFile(file_name='MARK')",
    "JointPrior(dist=evil)",
    "f'{evil}'",
    "True",
    "'MARK'",
    "1 / 0",
    "Uniform(minimum=1, maximum=1e308 * 10 ** 400)",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_file_is_evaluated(attack, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nLIMIT = 2\ndef run(*a): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "attack.prior"
    path.write_text("# a comment\nmass_1 = Uniform(20, 30)\nmass_2 = " + attack.replace("MARK", str(mark)) + f"\n{REDSHIFT}")
    with pytest.raises(ValueError, match=r"attack\.prior, line 3: ") as e:
        get_prior(str(path))
    assert not mark.exists() and "evil" not in sys.modules
    assert "expected" in str(e.value) or "number" in str(e.value) or "zero" in str(e.value)


def test_bilby_itself_runs_what_a_file_names(tmp_path, monkeypatch):
    # why files are not given to bilby's reader
    mark = tmp_path / "mark"
    (tmp_path / "malign.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "attack.prior"
    path.write_text("mass_1 = malign.Uniform(minimum=1, maximum=2)\n")
    with pytest.raises(ValueError, match=r"line 1: mass_1: 'malign\.Uniform' is not allowed"):
        get_prior(str(path))
    assert not mark.exists()
    with pytest.raises(TypeError):
        ConditionalPriorDict(str(path))
    assert mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "import os\n",
        "os.system('true')\n",
        "mass_1: int = 3\n",
        "mass_1 = mass_2 = Uniform(1, 2)\n",
        "mass_1, mass_2 = 3, 4\n",
        "x.y = 3\n",
        "mass_1 += 1\n",
        "for i in (1, 2): pass\n",
        "def f(): pass\n",
        "class A: pass\n",
        "[0.5, 0.5]\n",
        "mass_1 = Uniform(1, 2\n",
        "\x00\n",
        "mass_1 = " + "(" * 5000 + "1" + ")" * 5000 + "\n",
        "mass_1 = " + "-" * 20000 + "1\n",
        "mass_1 = " + "1+" * 20000 + "1\n",
    ],
    ids=lambda t: t[:12],
)
def test_anything_else_is_refused_with_its_line(text):
    with pytest.raises(ValueError, match=r"mine\.prior, line 1: "):
        parse(text, "mine.prior")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mass_1_source = Uniform(20, 30)\nmass_2 = Uniform(5, 10)\n" + REDSHIFT, "mass_2 and mass_1_source: mixes frames"),
        ("mass_1 = Uniform(20, 30)\nmass_2_source = Uniform(5, 10)\n" + REDSHIFT, "mass_1 and mass_2_source: mixes frames"),
        ("mass_1 = Uniform(20, 30)\n" + REDSHIFT, "without masses of both bodies .it draws mass_1, redshift"),
        ("", "it draws nothing"),
        (MASSES + "mass_1_source = Uniform(1, 2)\n" + REDSHIFT, "line 3: mass_1_source: beside mass_1 and mass_2 expected"),
        (MASSES + REDSHIFT + "total_mass_source = Constraint(5, 80)\n", "line 4: total_mass_source.*constraints on"),
        (SOURCE_MASSES + REDSHIFT + "total_mass = Constraint(5, 80)\n", "line 4: total_mass:"),
        (MASSES + REDSHIFT + "chi_1 = Uniform(0, 1)\n", "line 4: chi_1"),
        (MASSES + REDSHIFT + "mass_ratio = Uniform(0, 1)\n", "line 4: mass_ratio"),
        (MASSES + REDSHIFT + "mass_1 = Uniform(1, 2)\n", "line 4: mass_1 is also on line 1"),
        (MASSES + REDSHIFT + "luminosity_distance = Uniform(1, 2)\n", "one of them"),
        (MASSES + "redshift = UniformSourceFrame(0, 1, cosmology='WMAP9')\n", "line 3: .*Planck15"),
        (MASSES + "redshift = UniformSourceFrame(0, 1, name='luminosity_distance')\n", "line 3: .*own name"),
        (MASSES + REDSHIFT + "ra = UniformSourceFrame(0, 1)\n", "line 4: ra: UniformSourceFrame is a prior of"),
        ("mass_1 = Uniform(20, 30)\nmass_2 = ConditionalUniform(minimum=1, maximum=2)\n" + REDSHIFT, "line 2: .*condition_func"),
        (
            "mass_1 = Uniform(20, 30)\nmass_2 = Uniform(below_mass_1, minimum=1, maximum=2)\n" + REDSHIFT,
            "line 2: .*neither a number",
        ),
        (
            "mass_1 = Uniform(20, 30)\nmass_2 = ConditionalUniform(condition_func=below_mass_1_source, minimum=1, maximum=2)\n" + REDSHIFT,
            "line 2: .*mass_1_source, which has no prior",
        ),
        (MASSES + "redshift = Uniform(0, 1, colour='red')\n", "line 3: bilby cannot make"),
    ],
)
def test_refused_with_what_was_expected(text, message, tmp_path):
    path = tmp_path / "mine.prior"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        get_prior(str(path))


HEAVY = "[0.25]\nmass_1_source = Uniform(40, 50)\nmass_2_source = Uniform(30, 40)\na_1 = Uniform(0, 0.5)\n"
LIGHT = (
    "[3 / 4]\nmass_1_source = Uniform(20, 25)\n"
    "mass_2_source = ConditionalUniform(condition_func=below_mass_1_source, minimum=5, maximum=25)\n"
)


def test_a_mixture_has_its_weights(tmp_path):
    path = tmp_path / "mine.prior"
    path.write_text(REDSHIFT + "dec = Cosine()\n" + HEAVY + LIGHT)
    prior = get_prior(str(path))
    s = prior.sample(4000, 2)
    heavy = s["mass_1"] > 30
    assert heavy.mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))
    assert (s["a_1"][~heavy] == 0).all() and s["a_1"][heavy].max() > 0.4 and isinstance(s, SourceFrame)
    assert prior.mass_density(45.0, 35.0) == pytest.approx(0.25 / 100)
    assert prior.mass_density(22.0, 10.0) == pytest.approx(0.75 / 5 / 17)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (REDSHIFT + HEAVY + LIGHT.replace("3 / 4", "0.7"), "add to 0.95"),
        (REDSHIFT + HEAVY.replace("0.25", "-0.25") + LIGHT, r"line 2: weight \[-0.25\]"),
        (HEAVY + REDSHIFT + LIGHT, "line 5: redshift is shared"),
        (REDSHIFT + HEAVY + LIGHT.replace("_source", ""), "one frame"),
        (REDSHIFT + "a_1 = 0.1\n" + HEAVY + LIGHT, "line 2: a_1 is also on line 6"),
        (REDSHIFT + HEAVY + "[0.75]\n", "without masses"),
    ],
)
def test_mixtures_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, "mine.prior")


def test_the_mixture_of_the_documentation():
    page = (Path(__file__).resolve().parents[2] / "docs" / "waveforms.md").read_text()
    shown = re.search(r"```text\n(redshift = .*?)```", page, re.DOTALL)[1]
    assert [weight for weight, _ in parse(shown, "waveforms.md").components] == [0.75, 0.25]
    assert all(f"`{name}`" in page for name in packaged())


def test_a_frame_is_a_type():
    drawn = get_prior("end_o3_ratesandpops").sample(20, 1)
    seen = drawn.detector()
    assert isinstance(drawn, SourceFrame) and isinstance(seen, DetectorFrame) and seen.detector() is seen
    assert np.array_equal(seen["mass_2"], drawn["mass_2"] * (1 + drawn["redshift"])) and seen["a_1"] is drawn["a_1"]
    assert seen.source()["mass_1"] == pytest.approx(drawn["mass_1"], rel=1e-15)
    assert isinstance(get_prior("spin_bbh").sample(2, 1), DetectorFrame)
    louder = seen.rows(seen["mass_1"] > 30) | {"snr": np.ones(3)}
    assert isinstance(louder, DetectorFrame) and louder["mass_1"].min() > 30
    with pytest.raises(TypeError, match="expected one frame"):
        seen | drawn


def test_a_wrong_frame_is_refused_where_it_matters():
    drawn = get_prior("end_o3_ratesandpops").sample(2, 1)
    generator = WaveformGenerator.of(build_config({"preset": "demo"}))
    for wrong in (drawn, dict(drawn.detector())):
        with pytest.raises(TypeError, match="DetectorFrame"):
            generator(wrong)
        with pytest.raises(TypeError, match="DetectorFrame"):
            WaveformPolarizationSet.of(wrong)
        with pytest.raises(TypeError, match="SourceFrame"):
            SourceFrame.require(drawn.detector())
    kept = WaveformPolarizationSet.of(drawn.detector())
    assert isinstance(kept.signals(), DetectorFrame) and list(kept.signals()) == list(SIGNAL)


def test_an_edited_packaged_file_makes_another_key(tmp_path, monkeypatch):
    folder = shutil.copytree(prior_files.FOLDER, tmp_path / "populations")
    monkeypatch.setattr(prior_files, "FOLDER", folder)
    config = build_config({"preset": "demo", "injections": {"prior": "log_normal_masses(35, 20, 0.1)"}})
    store = open_store(tmp_path / "store")

    def identities():
        return [Workspace(config, store)._named_files(asset) for asset in ("training_waveforms", "injections", "sensitive_volume")]

    before = identities()
    with (folder / "log_normal_masses.prior").open("a") as f:
        f.write("psi = 0\n")
    after = identities()
    assert before[0] == after[0] and set(before[0]) == {"waveforms.prior"}
    assert all(b["injections.prior"] != a["injections.prior"] for b, a in zip(before[1:], after[1:], strict=True))


@pytest.mark.parametrize(
    ("old", "new", "flaw"),
    [
        ("dec = Cosine()\n", "", "dec is not drawn"),
        ("ra = Uniform(0, 2 * np.pi)\n", "", "ra is not drawn"),
        ("dec = Cosine()", "dec = Uniform(-1.5, 1.5)", "dec is drawn as Uniform, not Cosine"),
        ("dec = Cosine()", "dec = 0.3", "dec is drawn as DeltaFunction"),
        ("ra = Uniform(0, 2 * np.pi)", "ra = Uniform(maximum=1, minimum=0)", "ra from 0 to 1"),
        ("UniformComovingVolume(0, 1)", "Uniform(0, 1)", "redshift is drawn neither"),
        ("dec = Cosine()", "dec = Cosine(-0.5, 0.5)", None),
        ("", "", None),
    ],
)
def test_populations_that_no_volume_can_be_measured_with_are_refused_early(tmp_path, old, new, flaw):
    """A prior without sky puts every signal at one place, and its volume would still be that of the whole sky."""
    text = (
        "mass_1_source = Uniform(10, 50)\nmass_2_source = Uniform(10, 50)\nredshift = UniformComovingVolume(0, 1)\n"
        "dec = Cosine()\nra = Uniform(0, 2 * np.pi)\n"
    )
    assert old in text
    prior = tmp_path / "mine.prior"
    prior.write_text(text.replace(old, new))
    experiment = tmp_path / "aframe.yaml"
    experiment.write_text("preset: demo\ninjections: {prior: ./mine.prior}\n")
    if flaw is None:
        assert load_config(experiment).injections.prior == str(prior)
        assert Population.of(get_prior(str(prior))).volume > 0
        return
    with pytest.raises(ConfigError, match=re.escape(flaw)) as e:
        load_config(experiment)
    assert "even sky" in str(e.value)
    with pytest.raises(ValueError, match=re.escape(flaw)):
        Population.of(get_prior(str(prior)))
