"""The cost model's arithmetic: fits by hand, and parameters counted as they are."""

from __future__ import annotations

import numpy as np
from benchmarks.cost_model import check, fit, layer_parameters, make_model


def test_a_fit_finds_the_constants_that_made_the_figures():
    points = [({}, (1.0, n), 2.0 + 3.0 * n) for n in (1, 5, 20)]
    np.testing.assert_allclose(fit(points), [2.0, 3.0])


def test_no_constant_is_negative():
    points = [({}, (1.0, n), n - 0.5) for n in (1.0, 2.0, 3.0)]  # the best line has a negative first constant
    constants = fit(points)
    assert constants[0] == 0 and constants[1] > 0


def test_what_is_off_by_more_than_a_quarter_is_marked(capsys):
    points = [({"n": n}, (1e-9, n), 1.0 * n) for n in (1, 2)]
    check("stage", points, [({"n": 4}, (1e-9, 4), 3.0), ({"n": 5}, (1e-9, 5), 4.5)])
    lines = capsys.readouterr().out.splitlines()
    assert "| +33% **over 25 %** |" in lines[2] and "| +11% |" in lines[3]


def test_parameters_of_the_layers():
    hidden, layers = 128, 2  # 2 heads, 1 of keys and values, 64 wide each; three matrices of 341
    by_hand = layers * (2 * hidden * hidden + 2 * hidden * 64 + 3 * hidden * (hidden * 8 // 3))
    assert layer_parameters(make_model(hidden, layers)) == by_hand
