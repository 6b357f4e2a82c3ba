"""The share of a gain that is recovered: nothing, all of it, beyond it, and worse than before."""

import numpy as np

from keylayers.measures.gain import recovered_gain


def test_shares_of_the_gain_are_paired_by_seed():
    found = recovered_gain(4.0, [4.0, 2.0, 1.0, 5.0], [2.0, 2.0, 2.0, 3.0])
    np.testing.assert_allclose(found, [0.0, 1.0, 1.5, -1.0])
