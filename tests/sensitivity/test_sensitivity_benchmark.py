"""`python -m benchmarks.volume`, small."""

import json

import pytest

from benchmarks.volume import main


def test_json_and_agreement(capsys):
    """Both sides sum the same 20,000 float64 terms in another order: relative 1e-12 for V, and for the error its square root of
    a difference, 1e-9."""
    main(["--json", "--num-injections", "20000", "--num-thresholds", "30", "--num-pairs", "2", "--thresholds-timed", "30"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert result["ratio"] > 0 and result["ratio"] == pytest.approx(result["seconds"] / result["seconds_reference"])
    assert result["thresholds_timed"] == result["num_thresholds"] == 30
    assert result["volume_differs"] < 1e-12 and result["error_differs"] < 1e-9


def test_table_says_what_was_scaled(capsys):
    main(["--num-injections", "5000", "--num-thresholds", "20", "--num-pairs", "1", "--thresholds-timed", "4"])
    page = capsys.readouterr().out
    assert "4 of 20, scaled" in page and "loop over pairs and thresholds" in page
