"""`python -m benchmarks.training`, short; its bounds are those of the slow test."""

from __future__ import annotations

import json

import pytest

from benchmarks.training import main


def test_pieces_add_up_and_the_plain_loader_is_there(capsys):
    main(["--json", "--case", "small", "--steps", "1", "--rounds", "1"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    case = found["cases"]["small"]
    assert found["ratio"] == case["ratio"] == pytest.approx(case["step_s"] / case["network_s"])
    assert sum(case["pieces_s"].values()) == pytest.approx(case["step_s"])
    assert all(v >= 0 for k, v in case["pieces_s"].items() if not k.startswith("optimiser"))
    assert case["plain_ratio"] > 1


def test_an_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--case", "huge"])
    assert "--case huge: expected some of resnet34, small" in capsys.readouterr().err


@pytest.mark.slow
def test_data_cost_little_beside_the_network(capsys):
    main(["--json"])
    for case in json.loads(capsys.readouterr().out)["cases"].values():
        assert case["ratio"] <= case["bound"]
