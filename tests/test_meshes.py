"""Meshes with explicit axes (``jax.set_mesh``): what a single device gives, wherever x lies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from steinnorm import RunningStatistics
from steinnorm.functional import stein_batch_norm
from steinnorm.linen import SteinBatchNorm
from steinnorm.nnx import SteinBatchNorm as NNXSteinBatchNorm

SHAPE = (8, 6, 4, 8)
RUNNING = RunningStatistics(jnp.full(8, 0.3, jnp.float32), jnp.full(8, 2.0, jnp.float32))
RULES = ("none", "stein", "toward_running")
SPECS = {
    "data": P("data"),
    "model": P(None, None, None, "model"),
    "data_model": P("data", None, None, "model"),
    "both_on_examples": P(("data", "model")),
}
BOTH = SPECS["data_model"]
pytestmark = pytest.mark.skipif(
    jax.device_count() < 4, reason=f"needs 4 devices, got {jax.device_count()}"
)


@pytest.fixture
def explicit_mesh():
    mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def draw(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def on(mesh, spec, *arrays):
    placed = tuple(jax.device_put(a, NamedSharding(mesh, spec)) for a in arrays)
    return placed if len(placed) > 1 else placed[0]


def run(x, weights, mask=None, running=RUNNING, **options):
    """Output, running statistics, and the gradient of a loss that is not linear."""

    def loss(x):
        result = stein_batch_norm(x, jnp.full(8, 1.5), jnp.ones(8), running, mask=mask, **options)
        return jnp.sum(weights * jnp.sin(result.y)), (result.y, result.running)

    gradient, values = jax.grad(loss, has_aux=True)(x)
    return values, gradient


@functools.cache
def on_one_device(masked=False, **options):
    """The wanted result, made outside any mesh."""
    mask = valid() if masked else None
    return jax.device_get(
        jax.jit(functools.partial(run, **options))(draw(), draw(seed=1), mask=mask)
    )


def valid():
    return np.arange(8).reshape(8, 1, 1, 1) % 3 > 0


def assert_close(got, want, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("shrinkage", "spec"),
    [*itertools.product(RULES, ("data", "model", "data_model")), ("stein", "both_on_examples")],
)
def test_training_forward_and_gradient(shrinkage, spec):
    want = on_one_device(shrinkage=shrinkage)
    mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        x, weights = on(mesh, SPECS[spec], draw(), draw(seed=1))
        got = jax.jit(functools.partial(run, shrinkage=shrinkage))(x, weights)
        assert jax.typeof(got[0][0]) == jax.typeof(x)
    assert_close(got, want)


@pytest.mark.parametrize("test_statistics", ["batch", "shrunk", "running"])
def test_inference_forward_and_gradient(test_statistics):
    options = {
        "shrinkage": "stein",
        "use_running_average": True,
        "test_statistics": test_statistics,
    }
    want = on_one_device(**options)
    mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        x, weights = on(mesh, BOTH, draw(), draw(seed=1))
        got = jax.jit(functools.partial(run, **options))(x, weights)
    assert_close(got, want)


@pytest.mark.parametrize("mask_spec", [P("data"), P()])
@pytest.mark.parametrize("shrinkage", ["stein", "toward_running"])
def test_masks(shrinkage, mask_spec):
    want = on_one_device(masked=True, shrinkage=shrinkage)
    mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        x, weights = on(mesh, BOTH, draw(), draw(seed=1))
        mask = on(mesh, mask_spec, valid())
        got = jax.jit(functools.partial(run, shrinkage=shrinkage))(x, weights, mask=mask)
    assert_close(got, want)


def test_mask_of_single_values(explicit_mesh):
    x, mask = draw(), np.random.default_rng(2).random(SHAPE) < 0.7
    values = np.where(mask, x, np.nan)
    want = (x - np.nanmean(values, (0, 1, 2))) / np.nanstd(values, (0, 1, 2))
    layer = jax.jit(functools.partial(stein_batch_norm, running=RUNNING, shrinkage="none"))
    got = layer(on(explicit_mesh, BOTH, x), mask=on(explicit_mesh, BOTH, mask)).y
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask_spec", [P(None, "data"), P(None, None, None, "model")])
def test_a_mask_that_lies_elsewhere_than_the_input(explicit_mesh, mask_spec):
    x, mask = draw(), np.random.default_rng(2).random(SHAPE) < 0.7
    layer = jax.jit(functools.partial(stein_batch_norm, running=RUNNING, shrinkage="stein"))
    x = on(explicit_mesh, P("data"), x)
    got, want = (layer(x, mask=on(explicit_mesh, s, mask)).y for s in (mask_spec, P("data")))
    assert_close(got, want)


@pytest.mark.parametrize("running_spec", [P(), P("model")])
@pytest.mark.parametrize("spec", ["data", "data_model"])
def test_running_statistics_stay_where_they_were(explicit_mesh, spec, running_spec):
    """The state of a scan or of a training loop must not change its type from step to step."""
    x = on(explicit_mesh, SPECS[spec], draw())
    running = RunningStatistics(*on(explicit_mesh, running_spec, *RUNNING))
    result = jax.jit(functools.partial(stein_batch_norm, shrinkage="none"))(x, running=running)
    for before, after in zip(running, result.running, strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, 1)
        assert jax.typeof(after) == jax.typeof(before)


def test_eager_call_of_a_sharded_batch():
    """The example of issue 10, A: one axis, two dimensions, no jit."""
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Explicit,))
    x = draw(shape=(8, 6))
    with jax.set_mesh(mesh):
        y = stein_batch_norm(on(mesh, P("data"), x), shrinkage="none").y
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shrinkage", ["stein", "toward_running"])
class TestLayers:
    def test_linen(self, shrinkage):
        module = SteinBatchNorm(use_running_average=False, shrinkage=shrinkage, momentum=0.5)
        x = draw()
        variables = jax.device_get(module.init(jax.random.key(0), x))
        step = jax.jit(lambda v, x: module.apply(v, x, mutable=["batch_stats"]))
        want = step(variables, x)
        mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Explicit,) * 2)
        with jax.set_mesh(mesh):
            sharded = on(mesh, BOTH, x)
            assert_close(step(module.init(jax.random.key(0), sharded), sharded), want)

    def test_nnx(self, shrinkage):
        x = draw()

        @nnx.jit
        def step(model, x):
            def loss(model):
                return jnp.sum(jnp.sin(model(x)))

            return nnx.grad(loss)(model)

        def train(x):
            model = NNXSteinBatchNorm(8, shrinkage=shrinkage, momentum=0.5, rngs=nnx.Rngs(0))
            gradient = step(model, x)
            model.eval()
            return jax.device_get((gradient, nnx.state(model), model(x)))

        want = train(x)
        mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Explicit,) * 2)
        with jax.set_mesh(mesh):
            assert_close(train(on(mesh, BOTH, x)), want, 5e-5)  # gradients are sums of 192 values
