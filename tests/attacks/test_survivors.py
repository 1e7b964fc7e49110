"""Examples that leave the batch and come back to the device."""

import jax
import numpy as np
import pytest

from steinnorm.attacks._survivors import place_like


def _aligned(count):
    """Zeros where a device of the host would keep the array itself."""
    room = np.zeros(4 * count + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * count].view(np.float32)


@pytest.mark.parametrize("committed", [False, True])
def test_placed_examples_do_not_follow_later_changes(committed):
    like = jax.device_put(np.zeros(32, np.float32), jax.devices()[1] if committed else None)
    examples = _aligned(32)
    placed = jax.block_until_ready(place_like(examples, like))
    examples[:] = 1
    assert placed.committed == committed
    assert placed.devices() == like.devices()
    np.testing.assert_array_equal(placed, np.zeros(32))
