"""Arms as lines of a table: means, intervals and paired differences, computed by hand."""

import pytest

from keylayers.errors import Diverged
from keylayers.recipes.comparison import COLUMNS, Arm, Comparison

T_95 = {1: 12.7062, 2: 4.3027}  # Student's t, 97.5 %, by degrees of freedom


def result(loss: float, **changes) -> dict:
    given = {"test_loss": loss, "layers": ["a", "b"], "size_share": 0.25, "trainable": 100, "seconds": 2.0}
    return {**given, "peak_bytes": 3 * 2**20, **changes}


def test_an_arm_takes_means_over_seeds_and_the_largest_peak():
    arm = Arm.of("top:2", 1e-3, [result(1.0, seconds=1.0), result(2.0, trainable=103, peak_bytes=5 * 2**20)])
    assert arm == Arm("top:2", (1.0, 2.0), 1e-3, 2, 0.25, 102, 1.5, 5 * 2**20)


def test_a_loss_that_is_no_number_names_the_arm():
    with pytest.raises(Diverged, match=r"bottom:2: the held-out loss is not finite; lower the learning rate \(0\.1\)"):
        Arm.of("bottom:2", 0.1, [result(1.0), result(float("nan"))])


def test_rows_show_intervals_and_differences_paired_by_seed():
    first = Arm.of("top:2", 1e-3, [result(1.0), result(1.2)])
    other = Arm.of("last:2", 1e-3, [result(1.5), result(1.8)])
    top, last = Comparison(3.0, (first, other)).rows()
    assert len(top) == len(last) == len(COLUMNS)
    assert top[:3] == ("top:2", f"1.1000 ± {T_95[1] * 0.1:.4f}", "")  # standard error 0.1
    assert last[2] == f"-0.5500 ± {T_95[1] * 0.05:.4f}"  # differences -0.5 and -0.6
    assert top[3:] == ("2", "25.0%", "100", "0.001", "2.0", "3")


def test_one_seed_has_no_interval():
    arms = (Arm.of("top:2", 1e-3, [result(1.0)]), Arm.of("last:2", 1e-3, [result(1.5)]))
    rows = Comparison(3.0, arms).rows()
    assert [row[1] for row in rows] == ["1.0000", "1.5000"] and rows[1][2] == "-0.5000"
