"""The processes that make lalsimulation's signals, what is refused, and the benchmark."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from aframe_assets.config_load import build_config
from aframe_assets.lineage import graph
from aframe_assets.waveforms import lalsim
from aframe_assets.waveforms.approximants import KNOWN, LALSIMULATION, PYSEOBNR, problem
from aframe_assets.waveforms.frames import DetectorFrame
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.lalsim_pool import Pool
from aframe_assets.waveforms.priors import get_prior

RATE, DURATION, PAD = 2048, 8, 2
SIZE, COALESCENCE = DURATION * RATE, (DURATION - PAD) * RATE


def generator(approximant, processes):
    return WaveformGenerator(approximant, RATE, DURATION, 20, 50, PAD, processes=processes)


def draws(number):
    return get_prior("end_o3_ratesandpops").sample(number, 5).detector()


def odd_draws():
    """Fine, not a number, too light for SEOBNRv4 at this rate (its ringdown lies above Nyquist), fine."""
    values = {"mass_1": [40.0, np.nan, 6.0, 50.0], "mass_2": [30.0, 20.0, 5.0, 30.0], "a_1": [0.1, 0.1, 0.1, 0.2], "redshift": [0.1] * 4}
    return DetectorFrame({k: np.array(v) for k, v in values.items()})


@pytest.mark.parametrize("processes", [1, 2])
def test_a_draw_that_lalsimulation_refuses_is_zero_and_flagged(processes, capfd):
    made, good = generator("SEOBNRv4_opt", processes=processes)(odd_draws())
    assert good.tolist() == [True, False, False, True]
    for series in made.values():
        assert np.isfinite(series).all() and not series[~good].any() and np.abs(series[good]).max(1).all()
    # one line of LAL's for each refusal would bury a log
    assert "XLAL" not in capfd.readouterr().err


def test_results_do_not_depend_on_the_number_of_processes():
    values = draws(30)
    (alone, good), *others = (generator("IMRPhenomXAS", processes=n)(values) for n in (1, 2, 3))
    for made, also in others:
        assert (also == good).all() and all((made[k] == alone[k]).all() for k in alone)


def workers():
    return [c for c in psutil.Process().children(recursive=True) if "aframe_assets.waveforms.lalsim" in " ".join(c.cmdline())]


def running(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_processes_are_kept_between_calls_and_end_with_the_generator():
    make, values = generator("IMRPhenomXAS", processes=2), draws(3)
    assert not workers()
    make(values)
    before = {w.pid for w in workers()}
    make(values)
    assert len(before) == 2 and {w.pid for w in workers()} == before
    del make
    assert not workers()


def test_a_process_that_dies_is_a_clear_error_and_the_next_call_works():
    make, values = generator("IMRPhenomXAS", processes=2), draws(20)
    expected, _ = make(values)
    workers()[0].kill()
    with pytest.raises(RuntimeError, match=r"waveform process ended by signal SIGKILL.*execution\.waveform_processes"):
        make(values)
    again, _ = make(values)
    assert (again["plus"] == expected["plus"]).all()


def test_processes_end_even_when_their_parent_is_killed():
    code = (
        "import numpy as np, time\n"
        "from aframe_assets.waveforms.generation import WaveformGenerator\n"
        "from aframe_assets.waveforms.frames import DetectorFrame\n"
        "make = WaveformGenerator('IMRPhenomXAS', 2048, 4, 20, 50, 1, processes=2)\n"
        "make(DetectorFrame(mass_1=np.full(2, 40.0), mass_2=np.full(2, 30.0), redshift=np.full(2, 0.1)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    others = {w.pid for w in workers()}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as parent:
        assert parent.stdout.readline() == b"ready\n"
        started = [w for w in workers() if w.pid not in others]
        parent.send_signal(signal.SIGKILL)
    assert len(started) == 2
    deadline = time.monotonic() + 30
    while any(map(running, started)):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)


def test_an_error_that_is_not_about_a_draw_is_not_hidden():
    # what lalsimulation does not know is refused before; a worker that fails otherwise says why
    pool = Pool(1)
    try:
        with pytest.raises(RuntimeError, match="KeyError: 's1x'"):
            pool(lalsim.Window("IMRPhenomXAS", RATE, SIZE, COALESCENCE), [{"f_low": 20.0}])
    finally:
        pool.close()


def test_a_draw_that_gwsignal_refuses_is_zero_and_flagged(monkeypatch):
    """Its own error is no subclass of those that lalsimulation raises."""
    from lalsimulation.gwsignal.core import waveform
    from lalsimulation.gwsignal.core.errors import WaveformGenerationError

    def refuse(*_):
        raise WaveformGenerationError("ringdown above Nyquist")

    monkeypatch.setattr(lalsim, "PYSEOBNR", ("IMRPhenomXAS",))
    monkeypatch.setattr(waveform, "GenerateTDWaveform", refuse)
    made, good = generator("IMRPhenomXAS", 1)(get_prior("demo_mixture").sample(2, np.random.default_rng(1)).detector())
    assert not good.any() and not made["plus"].any() and not made["cross"].any()


def test_config_refuses_unknown_and_uninstalled_approximants(monkeypatch):
    monkeypatch.delenv("LAL_DATA_PATH", raising=False)
    missing = [("IMRPhenomXYZ", "expected one of IMRPhenomPv2, IMRPhenomD, TaylorF2, IMRPhenomXPHM"), ("SEOBNRv4_ROM", "LAL_DATA_PATH")]
    if subprocess.run([sys.executable, "-c", "import pyseobnr"], capture_output=True).returncode:
        missing.append((PYSEOBNR[0], "pip install pyseobnr"))
    for approximant, text in missing:
        with pytest.raises(ValueError, match=rf"waveforms\.approximant.*{text}"):
            build_config({"preset": "demo", "waveforms": {"approximant": approximant}})
    chosen = build_config({"preset": "demo", "waveforms": {"approximant": "IMRPhenomXPHM"}, "execution": {"waveform_processes": 3}})
    make = WaveformGenerator.of(chosen)
    assert (make.approximant, make.processes) == ("IMRPhenomXPHM", 3)


def test_a_data_file_makes_its_approximant_known(monkeypatch, tmp_path):
    (tmp_path / "SEOBNRv4ROM_v3.0.hdf5").touch()
    monkeypatch.setenv("LAL_DATA_PATH", f"{tmp_path / 'absent'}{os.pathsep}{tmp_path}")
    assert problem("SEOBNRv4_ROM") is None and problem("SEOBNRv5_ROM")


def test_lalsimulation_knows_every_name():
    import lalsimulation as ls

    for approximant in KNOWN:
        if approximant not in PYSEOBNR:
            model = ls.GetApproximantFromString(approximant)
            assert ls.SimInspiralImplementedTDApproximants(model) or ls.SimInspiralImplementedFDApproximants(model)
    assert len(set(KNOWN)) == len(KNOWN) and "IMRPhenomXPHM" in LALSIMULATION


def test_processes_never_enter_an_identity():
    assert not [n for n in graph(build_config({"preset": "demo"})).values() if any(p.split(".")[0] == "execution" for p in n.config)]


def test_benchmark_prints_one_line_of_json():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.waveforms", "--json", "--num", "2"], capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert {"ratio", "num", "IMRPhenomPv2", "IMRPhenomD"} <= set(result) and result["num"] == 2
    assert result["ratio"] == max(result[a]["ratio"] for a in ("IMRPhenomPv2", "IMRPhenomD"))
    for a in ("IMRPhenomPv2", "IMRPhenomD"):
        row = result[a]
        assert row["ratio"] == pytest.approx(row["ours_ms"] / row["pycbc_ms"]) and row["chain_ratio"] > 0
