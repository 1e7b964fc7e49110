"""What Hypothesis draws for the property tests: seven channels."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st

property_test = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
positive = st.floats(2.0**-20, 2.0**20, width=32)
seven = st.lists(finite, min_size=7, max_size=7).map(lambda v: np.array(v, np.float32))
seven_positive = st.lists(positive, min_size=7, max_size=7).map(lambda v: np.array(v, np.float32))
