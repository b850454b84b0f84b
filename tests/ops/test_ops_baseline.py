"""`python -m benchmarks.baseline`: coincident power on known strain, and the same search as the run's, whatever scores its windows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aframe_assets.config_load import build_config
from aframe_assets.engine.engine import load_engine
from aframe_assets.inference.aggregate import BACKGROUND, FOREGROUND, REJECTED
from aframe_assets.waveforms.ledger import EventSet, InjectionParameterSet, RecoveredInjectionSet
from aframe_ops.cli.initialise import initialise
from benchmarks import baseline
from benchmarks.baseline import LENGTHS, POWER, CoincidentPower, rates_of, search
from benchmarks.sensitivity import DAY, names_of_quantities

RATE, KERNEL = 2048.0, 3072


def power(**changes) -> CoincidentPower:
    return CoincidentPower(**{"sample_rate": RATE, "kernel": KERNEL, "context": 0, "delays": (0.01,)} | changes)


def burst(at: float, energy: float) -> np.ndarray:
    """A sine-Gaussian of 150 Hz and 10 ms, `at` seconds; the sum of its squares is `energy`."""
    t = np.arange(KERNEL) / RATE - at
    wave = np.exp(-((t / 0.01) ** 2)) * np.sin(2 * np.pi * 150 * t)
    return wave * np.sqrt(energy / np.sum(wave**2))


def test_one_stretch_of_noise_is_a_unit_normal():
    """A window with room for one stretch alone, in one detector: the excess of Wilson and Hilferty is normal to a percent."""
    rng, length = np.random.default_rng(0), 1 / 4
    one = power(kernel=round(length * RATE) + 1, delays=(), lengths=(length,))
    scores = one.score_windows(rng.normal(size=(4000, 1, one.kernel)).astype(np.float32))
    assert scores.mean() == pytest.approx(0, abs=0.06) and scores.std() == pytest.approx(1, abs=0.06)


def test_power_counts_where_the_detectors_agree():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(60, 2, KERNEL)).astype(np.float32)
    quiet = power().score_windows(noise)

    def louder(first: float | None, second: float | None) -> float:
        signal = np.stack([np.zeros(KERNEL) if at is None else burst(at, 150.0) for at in (first, second)]).astype(np.float32)
        return float(np.mean(power().score_windows(noise + signal) - quiet))

    both, one, late = louder(0.9, 0.905), louder(0.9, None), louder(0.5, 1.1)
    assert both > 4 and abs(one) < 1 and abs(late) < 1
    # the energy of 150 over the noise of the shortest stretch, whose mean is 2 * bandwidth * length, to a quarter
    freedom = 2 * (350 - 32) * LENGTHS[0]
    expected = (np.cbrt(1 + 150 / freedom) - 1 + 2 / (9 * freedom)) / np.sqrt(2 / (9 * freedom))
    assert both + quiet.mean() == pytest.approx(expected, rel=0.25)


def test_a_tone_outside_the_band_is_not_seen():
    noise = np.random.default_rng(2).normal(size=(20, 2, KERNEL)).astype(np.float32)
    tone = np.sin(2 * np.pi * 700 * np.arange(KERNEL) / RATE).astype(np.float32)
    assert power().score_windows(noise + 3 * tone) == pytest.approx(power().score_windows(noise), abs=0.02)


def test_context_is_cut_off():
    rng = np.random.default_rng(3)
    wide = rng.normal(size=(5, 2, KERNEL + 200)).astype(np.float32)
    assert (power(context=100).score_windows(wide) == power().score_windows(wide[..., 100:-100])).all()


def test_a_band_that_whitening_leaves_nothing_of_is_refused():
    config = build_config({"preset": "demo"})
    with pytest.raises(ValueError, match=r"band 950 to 1000 Hz: 0 Hz of it are in the whitened strain; expected at least 64"):
        CoincidentPower.of(config, (950.0, 1000.0))
    made = CoincidentPower.of(config, (10.0, 300.0))
    # 10.01 ms of light from Hanford to Livingston
    assert made.band == (32.0, 300.0) and made.delays == (pytest.approx(0.01001, abs=1e-5),)


def test_it_is_the_search_of_the_run_but_for_the_scores(tiny_run, tmp_path):
    """With the run's own engine in place of the baseline, the events are those of the run."""
    workspace = tiny_run.workspace()
    engine = load_engine(workspace.store.open_local(workspace.complete("engine")))
    own = workspace.store.open_local(workspace.complete("events"))
    again = search(workspace, engine, tmp_path / "again")
    for name, kind in ((BACKGROUND, EventSet), (FOREGROUND, RecoveredInjectionSet)):
        a, b = kind.read(own / name), kind.read(again / name)
        assert len(a) == len(b) > 0 and a.Tb == b.Tb
        np.testing.assert_allclose(a.detection_statistic, b.detection_statistic, atol=1e-5)
    a, b = (InjectionParameterSet.read(f / REJECTED) for f in (own, again))
    assert len(a) == len(b) and (a.snr == b.snr).all()


def test_the_benchmark_prints_both_and_keeps_the_events(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    kept = tmp_path / "kept"
    command = [str(tiny_run.path), "--far-per-hour", "30", "60", "--replicates", "40", "--events", str(kept)]
    baseline.main([*command, "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    told = json.loads(lines[0])
    events = EventSet.read(kept / BACKGROUND)
    assert told["Tb"] == events.Tb and told["fars"] == [30 / 3600, 60 / 3600]
    at = names_of_quantities().index("all injections")
    # by hand: the share of injections whose event is louder than all but FAR x Tb background events
    allowed = round(told["fars"][0] * events.Tb)
    loudest = np.sort(events.detection_statistic)[::-1]
    found = RecoveredInjectionSet.read(kept / FOREGROUND)
    assert told["baseline"][0][at] == pytest.approx(np.mean(found.detection_statistic >= loudest[allowed - 1]))
    assert told["difference"][0][at] == pytest.approx(told["model"][0][at] - told["baseline"][0][at])
    assert np.min(told["difference_error"]) >= 0
    made = (kept / BACKGROUND).stat().st_mtime_ns
    baseline.main(command)
    page = capsys.readouterr().out
    assert POWER in page and "all injections" in page and "of all injections by over 2 sigma" in page
    assert (kept / BACKGROUND).stat().st_mtime_ns == made
    with pytest.raises(SystemExit):
        baseline.main([*command, "--band", "32", "200"])
    assert "holds the events of another run or band" in capsys.readouterr().err


def test_a_search_that_was_killed_goes_on_with_the_next_chunk(tiny_run, tmp_path, monkeypatch):
    workspace, folder = tiny_run.workspace(), tmp_path / "events"
    config, run_slides, asked = workspace.config, baseline.run_slides, []

    def twice(chunk, *args, **settings):
        asked.append(chunk.gps_start)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return run_slides(chunk, *args, **settings)

    monkeypatch.setattr(baseline, "run_slides", twice)
    with pytest.raises(KeyboardInterrupt):
        search(workspace, CoincidentPower.of(config), folder)
    assert len([p for p in folder.iterdir() if p.is_dir()]) == 1 and not (folder / REJECTED).exists()

    def half(_, output):
        output.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(baseline, "aggregate_rejected", half)
        with pytest.raises(KeyboardInterrupt):
            search(workspace, CoincidentPower.of(config), folder)
    # it is what tells that nothing is missing
    assert not (folder / REJECTED).exists()
    search(workspace, CoincidentPower.of(config), folder)
    chunks = [r["gps_start"] for r in workspace.rows().values() if r["role"] == "test"]
    assert asked == [chunks[0], chunks[1], *chunks[1:]] and (folder / REJECTED).is_file()


def test_one_a_day_needs_ten_days():
    assert rates_of(9.9 * DAY, [1.0]) == [1 / 3600] and rates_of(10 * DAY, [1.0]) == [1 / 3600, 1 / DAY]


def test_a_run_without_events_is_told(tmp_path, capsys):
    run, _ = initialise(tmp_path / "run", "demo")
    with pytest.raises(SystemExit):
        baseline.main([str(run.path)])
    assert "its events are not complete; make them with `aframe run" in capsys.readouterr().err
