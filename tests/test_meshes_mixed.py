"""Explicit meshes where another axis is mapped by hand, and several feature axes on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from steinnorm import RunningStatistics, batch_statistics
from steinnorm.functional import stein_batch_norm
from steinnorm.linen import SteinBatchNorm
from steinnorm.nnx import SteinBatchNorm as NNXSteinBatchNorm
from steinnorm.nnx import calibrate

X = np.random.default_rng(0).normal(1, 2, (8, 3, 4)).astype(np.float32)
MASKS = {
    "none": None,
    "of values": np.random.default_rng(1).random((8, 3, 4)) < 0.7,
    "of examples": np.arange(8)[:, None, None] % 3 > 0,
    "of channels": np.array([True, True, False, True]),
}
RUNNING = RunningStatistics(jnp.full(4, 0.3), jnp.full(4, 2.0))
pytestmark = [
    pytest.mark.skipif(jax.device_count() < 4, reason=f"needs 4 devices, got {jax.device_count()}"),
    pytest.mark.skipif(
        jax.__version_info__ < (0, 8, 1), reason="explicit meshes are supported from jax 0.8.1 on"
    ),
]


@pytest.fixture
def mesh():
    mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def exact(mask, x=X, axes=(0, 1)):
    """Mean and variance in float64, 0 where nothing is valid."""
    valid = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    count = np.maximum(valid.sum(axes), 1)
    mean = np.where(valid, x, 0).astype(np.float64).sum(axes) / count
    squares = np.where(valid, np.square(x - np.expand_dims(mean, axes)), 0)
    return mean, squares.sum(axes) / count


@pytest.mark.parametrize("two_passes", [False, True])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("masked", MASKS)
def test_examples_by_hand_channels_by_type(mesh, masked, check_vma, two_passes):
    """Some sums lie on the devices of the channels, others (of a mask) on all."""
    mask = MASKS[masked]
    whole = mask is None or mask.ndim == 1

    def of_shard(x, mask):
        found = batch_statistics(
            x, mask=mask, axis_name="data", noise=True, use_fast_variance=not two_passes
        )
        return found.mean, found.variance, found.mean_noise

    found = jax.jit(
        jax.shard_map(
            of_shard,
            axis_names={"data"},
            in_specs=(P("data"), P() if whole else P("data")),
            out_specs=P(),
            check_vma=check_vma,
        )
    )(jax.device_put(X, NamedSharding(mesh, P("data", None, "model"))), mask)
    mean, variance = exact(mask)
    np.testing.assert_allclose(found[0], mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[1], variance, rtol=3e-6)
    np.testing.assert_allclose(
        found[2], batch_statistics(X, mask=mask, noise=True).mean_noise, rtol=1e-5
    )


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("rule", ["stein", "toward_running"])
def test_training_with_examples_by_hand(mesh, rule, check_vma):
    """The output, and gradients through statistics of all devices."""
    layer = SteinBatchNorm(use_running_average=False, shrinkage=rule, axis_name="data")
    plain = layer.clone(axis_name=None)
    variables = plain.init(jax.random.key(0), X)
    weights = np.random.default_rng(2).normal(size=X.shape).astype(np.float32)

    def loss(layer, x, weights):
        y, updated = layer.apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(weights * jnp.sin(y)), (y, updated["batch_stats"])

    def of_shard(x, weights):
        gradient, (y, kept) = jax.grad(loss, 1, has_aux=True)(layer, x, weights)
        return gradient, y, kept

    placed = jax.device_put((X, weights), NamedSharding(mesh, P("data", None, "model")))
    found = jax.jit(
        jax.shard_map(
            of_shard,
            axis_names={"data"},
            in_specs=P("data"),
            out_specs=(P("data"), P("data"), P()),
            check_vma=check_vma,
        )
    )(*placed)
    gradient, (y, kept) = jax.grad(loss, 1, has_aux=True)(plain, jnp.asarray(X), weights)
    for ours, wanted in zip(
        jax.tree.leaves(found), jax.tree.leaves((gradient, y, kept)), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [P("data"), P(None, "data"), P(None, None, None, "model"), P("data", None, None, "model")],
)
def test_an_ensemble_by_vmap(mesh, spec):
    """As docs/devices.md says: with the mean in a read of its own, which decides nothing."""
    members = np.random.default_rng(3).normal(1, 2, (4, 8, 3, 4)).astype(np.float32)

    def member(x):
        return stein_batch_norm(x, running=RUNNING, shrinkage="none", use_fast_variance=False).y

    found = jax.jit(jax.vmap(member))(jax.device_put(members, NamedSharding(mesh, spec)))
    mean, variance = exact(None, members, (1, 2))
    mean, variance = (np.expand_dims(a, (1, 2)) for a in (mean, variance))
    np.testing.assert_allclose(found, (members - mean) / np.sqrt(variance + 1e-5), atol=3e-6)


@pytest.mark.parametrize("spec", [P("data", None, None, "model"), P(None, None, "model", "data")])
@pytest.mark.parametrize("rule", ["none", "stein", "toward_running"])
def test_several_feature_axes(mesh, rule, spec):
    """Where any of them is divided; the rules take them as one."""
    x = np.random.default_rng(4).normal(1, 2, (8, 6, 2, 4)).astype(np.float32)
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    layer = SteinBatchNorm(use_running_average=False, axis=(-2, -1), shrinkage=rule)
    variables = layer.init(jax.random.key(0), x)

    def apply(x):
        return layer.apply(variables, x, mutable=["batch_stats"])

    y, kept = jax.jit(apply)(placed)
    if rule == "none":
        mean, variance = exact(None, x)
        np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), atol=2e-6)
    wanted = apply(jnp.asarray(x))
    for ours, theirs in zip(jax.tree.leaves((y, kept)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_several_feature_axes_in_nnx(mesh):
    x = np.random.default_rng(4).normal(1, 2, (8, 6, 2, 4)).astype(np.float32)
    placed = jax.device_put(x, NamedSharding(mesh, P("data", None, None, "model")))
    models = [NNXSteinBatchNorm(8, axis=(-2, -1), rngs=nnx.Rngs(0)) for _ in range(2)]
    for model, batch in zip(models, (placed, x), strict=True):
        model(batch)
    np.testing.assert_allclose(models[0].mean[...], models[1].mean[...], rtol=1e-6, atol=1e-6)
    with pytest.warns(UserWarning, match="16 examples is rough"):
        calibrated = [calibrate(m, [b, b]) for m, b in zip(models, (placed, x), strict=True)]
    for model in calibrated:
        model.eval(test_statistics="calibrated")
    np.testing.assert_allclose(calibrated[0](placed), calibrated[1](x), atol=1e-5)
