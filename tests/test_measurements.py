import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lesionseg.measurements import longest_diameter


@given(hnp.arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8))), st.sampled_from([(1.0, 1.0), (0.5, 2.0)]))
@settings(max_examples=100, deadline=None)
def test_longest_diameter_is_that_of_all_pairs(mask, spacing_mm):
    points = [
        ((h + dh) * spacing_mm[0], (w + dw) * spacing_mm[1])
        for h, w in np.argwhere(mask)
        for dh, dw in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))
    ]
    longest = max((math.dist(a, b) for a in points for b in points), default=0.0)
    assert longest_diameter(mask, spacing_mm) == pytest.approx(longest)
