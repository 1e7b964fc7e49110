"""What the Linen layer adds to the pure function: variables, modes, transforms, telemetry."""

import inspect

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from steinnorm import shrinkage as rules
from steinnorm.linen import BatchNorm, SteinBatchNorm


@pytest.fixture
def x(key):
    return 2 + 3 * jax.random.normal(key, (8, 4, 5))


def trained(layer, x, steps=3):
    variables = layer.init(jax.random.key(0), x)
    step = jax.jit(lambda v, x: layer.apply(v, x, mutable=["batch_stats"])[1])
    for i in range(steps):
        variables = {**variables, **step(variables, x + i)}
    return variables


def test_takes_every_field_of_flax_with_the_same_default():
    theirs = {f: (a.default) for f, a in inspect.signature(nn.BatchNorm).parameters.items()}
    ours = {f: (a.default) for f, a in inspect.signature(SteinBatchNorm).parameters.items()}
    added = {"shrinkage": "stein", "test_statistics": "running"}
    assert ours == {**theirs, **added}
    assert list(inspect.signature(SteinBatchNorm.__call__).parameters) == list(
        inspect.signature(nn.BatchNorm.__call__).parameters
    )


@pytest.mark.parametrize("name", rules.NAMES)
def test_a_checkpoint_opens_in_flax_and_comes_back(name, x):
    layer = SteinBatchNorm(use_running_average=True, shrinkage=name)
    plain = nn.BatchNorm(use_running_average=True)
    variables = trained(layer.clone(use_running_average=False), x)
    template = plain.init(jax.random.key(1), x)
    loaded = flax.serialization.from_bytes(template, flax.serialization.to_bytes(variables))
    np.testing.assert_allclose(
        plain.apply(loaded, x), layer.apply(variables, x), rtol=1e-5, atol=1e-5
    )
    back = flax.serialization.from_bytes(variables, flax.serialization.to_bytes(loaded))
    np.testing.assert_array_equal(layer.apply(back, x), layer.apply(variables, x))


def test_a_whole_models_checkpoint_keeps_its_paths(x):
    class Net(nn.Module):
        norm: type

        @nn.compact
        def __call__(self, x):
            for _ in range(2):  # unnamed layers: Linen calls them BatchNorm_0 and BatchNorm_1
                x = self.norm(use_running_average=True)(nn.Dense(5)(x))
            return x

    variables = Net(nn.BatchNorm).init(jax.random.key(0), x)
    variables = jax.tree.map(lambda a: a + 0.3, variables)
    np.testing.assert_allclose(
        Net(BatchNorm).apply(variables, x),
        Net(nn.BatchNorm).apply(variables, x),
        rtol=1e-5,
        atol=1e-5,
    )


def test_running_statistics_record_what_was_normalised_with(x):
    layer = SteinBatchNorm(use_running_average=False, momentum=0.0)
    variables = trained(layer, x, steps=1)
    same = layer.clone(use_running_average=True).apply(variables, x)
    now = layer.apply(layer.init(jax.random.key(0), x), x, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(same, now, rtol=1e-5, atol=1e-5)


def test_initialisation_needs_no_axis_and_records_nothing(x):
    layer = SteinBatchNorm(use_running_average=False, axis_name="absent")
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(5))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(5))


def test_shared_layer_called_twice_in_initialisation():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = SteinBatchNorm(use_running_average=False, axis_name="batch", name="norm")
            x = norm(x)
            return x, norm(x)

    x = jax.random.normal(jax.random.key(1), (4, 6))
    (first, second), _ = Twice().init_with_output(jax.random.key(0), x)
    assert first.shape == second.shape == x.shape


def test_low_precision_running_statistics_keep_their_dtype(x):
    layer = SteinBatchNorm(
        use_running_average=False, param_dtype=jnp.bfloat16, force_float32_reductions=False
    )
    x = x.astype(jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    _, updated = layer.apply(variables, x, mutable=["batch_stats"])
    assert {a.dtype for a in jax.tree.leaves(updated)} == {jnp.dtype(jnp.bfloat16)}


def test_inference_does_not_depend_on_the_batch(x):
    layer = SteinBatchNorm(use_running_average=True)
    variables = trained(layer.clone(use_running_average=False), x)
    whole = layer.apply(variables, x)
    for i in range(len(x)):
        np.testing.assert_allclose(layer.apply(variables, x[i : i + 1])[0], whole[i], rtol=1e-6)


def test_batch_statistics_at_inference_need_nothing_mutable(x):
    layer = SteinBatchNorm(use_running_average=True, test_statistics="batch", shrinkage="none")
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_allclose(layer.apply(variables, x).std((0, 1)), 1.0, rtol=1e-3)


def test_scan_vmap_and_remat(key):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.remat(SteinBatchNorm)(use_running_average=False)(x), None

    stack = nn.scan(
        Block, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3
    )()
    x = jax.random.normal(key, (8, 5))
    variables = stack.init(jax.random.key(0), x, None)
    (y, _), updated = stack.apply(variables, x, None, mutable=["batch_stats"])
    assert y.shape == x.shape
    assert jax.tree.leaves(updated)[0].shape == (3, 5)

    many = nn.vmap(
        SteinBatchNorm,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )(use_running_average=False)
    xs = jnp.stack([x, 2 * x + 1])
    y, _ = many.init_with_output(jax.random.key(0), xs)
    single, _ = SteinBatchNorm(use_running_average=False).init_with_output(jax.random.key(0), xs[1])
    np.testing.assert_allclose(y[1], single, rtol=1e-5, atol=1e-6)


class TestTelemetry:
    def test_factors_are_sown_when_asked_for(self, x):
        layer = SteinBatchNorm(use_running_average=False)
        variables = layer.init(jax.random.key(0), x)
        assert set(variables) == {"params", "batch_stats"}
        _, sown = layer.apply(variables, x, mutable=["batch_stats", "intermediates"])
        factors = sown["intermediates"]
        assert 0.5 <= factors["mean_factor"][0] <= 1  # 3/(C+1) is the least at C = 5
        assert factors["variance_factor"][0].shape == ()

    def test_factors_of_shrunk_test_statistics_are_those_of_their_own_rule(self, x):
        layer = SteinBatchNorm(use_running_average=True, test_statistics="shrunk")
        variables = trained(layer.clone(use_running_average=False), x)
        _, sown = layer.apply(variables, x[:1], mutable=["intermediates"])
        assert abs(sown["intermediates"]["mean_factor"][0]) < 1e-5  # one example: all running

    def test_costs_nothing_when_not_asked_for(self, x):
        layer = SteinBatchNorm(use_running_average=False)
        variables = layer.init(jax.random.key(0), x)

        def equations(mutable):
            jaxpr = jax.make_jaxpr(lambda v, x: layer.apply(v, x, mutable=mutable))(variables, x)
            return len(jaxpr.eqns)

        assert equations(["batch_stats"]) < equations(["batch_stats", "intermediates"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shrinkage": "stain"}, ValueError, "none, stein.*got 'stain'"),
        ({"shrinkage": 1}, TypeError, "got int"),
        ({"momentum": -0.1}, ValueError, r"\[0, 1\].*got -0.1"),
        ({"epsilon": -1e-5}, ValueError, "at least 0"),
        ({"test_statistics": "moving"}, ValueError, "running, batch, shrunk"),
    ],
)
def test_errors_come_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        SteinBatchNorm(**options)


def test_mode_must_be_given_once(x):
    with pytest.raises(ValueError, match="use_running_average"):
        SteinBatchNorm().init(jax.random.key(0), x)
