"""Standardising inside the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.inputs import Standardised
from tests.experiments.models.networks import abstract, resnet


class _Identity(nnx.Module):
    def __call__(self, x):
        return x


@pytest.mark.parametrize("spatial", [(4, 5), (2, 3, 4)])
def test_values_and_gradient(spatial):
    x = np.random.default_rng(0).uniform(size=(2, *spatial, 3)).astype(np.float32)
    mean, std = np.array([0.2, 0.4, 0.6]), np.array([0.1, 0.2, 0.5])
    model = Standardised(_Identity(), mean, std)
    np.testing.assert_allclose(model(jnp.asarray(x)), (x - mean) / std, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: model(x).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, np.broadcast_to(1 / std, x.shape), rtol=1e-5)
    half = model(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_nothing_is_learned_and_everything_is_kept():
    model = Standardised(abstract(resnet), [0.1, 0.2, 0.3], [1.0, 2.0, 3.0])
    assert set(nnx.state(model, nnx.Param)) == {"network"}
    assert set(nnx.state(model)) == {"network", "mean", "std"}
    assert type(model.mean) is nnx.Variable
    assert model.mean[...].dtype == model.std[...].dtype == jnp.float32
    inside = Standardised(abstract(resnet, "batch"), [0.0] * 3, [1.0] * 3)
    assert nnx.view(inside, use_running_average=True).network.stem_norm.use_running_average


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0, 0.0], [1.0, 0.0], "positive"),
        ([0.0, 0.0], [1.0, -1.0], "positive"),
        ([0.0, np.nan], [1.0, 1.0], "finite"),
        ([0.0, 0.0], [1.0], r"\(2,\) and \(1,\)"),
        (0.5, 0.5, r"\(C,\)"),
    ],
)
def test_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Standardised(_Identity(), mean, std)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="2 channels"):
        Standardised(_Identity(), [0.0, 0.0], [1.0, 1.0])(jnp.ones((1, 4, 4, 3)))
