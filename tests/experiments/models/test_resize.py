"""Aligned bilinear resizing against the formula and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.resize import resize_aligned

_SHAPES = [((3, 4), (6, 8)), ((2, 5), (7, 5)), ((1, 3), (4, 1)), ((5, 7), (3, 2)), ((4, 4), (4, 4))]


def _reference(x, shape):
    """One output pixel at a time, in float64, from its four neighbours."""
    batch, height, width, channels = x.shape
    y = np.empty((batch, *shape, channels))
    for i in range(shape[0]):
        for j in range(shape[1]):
            r = i * (height - 1) / (shape[0] - 1) if shape[0] > 1 else 0.0
            c = j * (width - 1) / (shape[1] - 1) if shape[1] > 1 else 0.0
            top, left = min(int(r), height - 1), min(int(c), width - 1)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            v, u = r - top, c - left
            y[:, i, j] = (1 - v) * ((1 - u) * x[:, top, left] + u * x[:, top, right]) + v * (
                (1 - u) * x[:, bottom, left] + u * x[:, bottom, right]
            )
    return y


@pytest.mark.parametrize(("before", "after"), _SHAPES)
def test_formula(before, after):
    x = np.random.default_rng(0).normal(size=(2, *before, 3))
    got = resize_aligned(jnp.asarray(x, jnp.float32), after)
    np.testing.assert_allclose(got, _reference(x, after), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), _SHAPES)
def test_pytorch(before, after):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).normal(size=(2, *before, 3)).astype(np.float32)
    peer = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2), size=after, mode="bilinear", align_corners=True
    ).permute(0, 2, 3, 1)
    np.testing.assert_allclose(resize_aligned(jnp.asarray(x), after), peer, rtol=1e-5, atol=1e-6)


def test_corners_stay_and_planes_stay_planes():
    rows, columns = np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 2, 4), indexing="ij")
    y = resize_aligned(jnp.asarray(rows + columns, jnp.float32)[None, :, :, None], (5, 9))
    rows, columns = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 2, 9), indexing="ij")
    np.testing.assert_allclose(y[0, :, :, 0], rows + columns, atol=1e-6)


def test_dtype_and_errors():
    x = jnp.ones((1, 3, 4, 2), jnp.bfloat16)
    y = resize_aligned(x, (6, 7))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), 1.0, atol=0.01)
    assert jax.grad(lambda x: resize_aligned(x, (6, 7)).sum())(x).dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="int32"):
        resize_aligned(jnp.ones((1, 3, 4, 2), jnp.int32), (6, 7))
    with pytest.raises(ValueError, match=r"\(1, 3, 4\)"):
        resize_aligned(jnp.ones((1, 3, 4)), (6, 7))
    with pytest.raises(ValueError, match=r"\(0, 7\)"):
        resize_aligned(x, (0, 7))
