"""Several devices give what one gives, with one all-reduce per layer in the forward pass.

A second one, where a mean is far from its running value, is in a branch.
"""

import functools
import re

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

DEVICES, SHAPE = 4, (16, 4, 4, 5)
RUNNING = RunningStatistics(jnp.full(5, 0.3), jnp.full(5, 2.0))
COLLECTIVES = re.compile(r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)(?:-start)?\(")
pytestmark = pytest.mark.skipif(
    jax.device_count() < DEVICES, reason=f"needs {DEVICES} devices, got {jax.device_count()}"
)


def collectives(compiled):
    """Those that every call makes: in the main computation, not in a branch of it."""
    return COLLECTIVES.findall(compiled.as_text().split("\nENTRY ")[1])


def draw(offset=1.0, shape=SHAPE):
    rng = np.random.default_rng(0)
    # Shards that differ, so that a mean of the shards' variances would be wrong.
    by_example = rng.normal(size=(shape[0],) + (1,) * (len(shape) - 1))
    return jnp.asarray(offset + rng.normal(size=shape) + 2 * by_example, jnp.float32)


def layer(x, mask=None, axis_name=None, **options):
    """Output, recorded statistics, and the gradient of a loss that is not linear."""
    result = stein_batch_norm(
        x, None, None, RUNNING, mask=mask, axis_name=axis_name, momentum=0.5, **options
    )
    return result.y, result.running


def loss(x, weights, **options):
    return jnp.sum(weights * jnp.sin(layer(x, **options)[0]))


def assert_close(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def on_shards(function, mesh, n_arrays=1):
    """Maps a function (arrays, sharded by example) -> (y, running) over the mesh."""
    return jax.shard_map(
        function, mesh=mesh, in_specs=(P("devices"),) * n_arrays, out_specs=(P("devices"), P())
    )


@pytest.mark.parametrize(
    ("shrinkage", "use_fast_variance"),
    [("none", True), ("stein", True), ("stein", False), ("toward_running", True)],
)
class TestOneDeviceResult:
    def test_shard_map(self, mesh, shrinkage, use_fast_variance):
        x = draw()
        options = {"shrinkage": shrinkage, "use_fast_variance": use_fast_variance}
        mapped = on_shards(functools.partial(layer, axis_name="devices", **options), mesh)
        assert_close(jax.jit(mapped)(x), jax.jit(functools.partial(layer, **options))(x))

    def test_pmap(self, shrinkage, use_fast_variance):
        x = draw()
        options = {"shrinkage": shrinkage, "use_fast_variance": use_fast_variance}
        y, running = jax.pmap(
            functools.partial(layer, axis_name="devices", **options), axis_name="devices"
        )(x.reshape(DEVICES, -1, *SHAPE[1:]))
        want_y, want_running = jax.jit(functools.partial(layer, **options))(x)
        assert_close(y.reshape(SHAPE), want_y)
        for device in range(DEVICES):
            assert_close(jax.tree.map(lambda a, d=device: a[d], running), want_running)

    @pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
    def test_jit_with_sharded_inputs(self, shrinkage, use_fast_variance, axis_type):
        x = draw()
        options = {"shrinkage": shrinkage, "use_fast_variance": use_fast_variance}
        mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(axis_type,))
        sharded = jax.device_put(x, NamedSharding(mesh, P("devices")))
        run = jax.jit(functools.partial(layer, **options))
        assert_close(run(sharded), run(x))


class TestGradients:
    def test_shard_map(self, mesh):
        x, weights = draw(), jax.random.normal(jax.random.key(1), SHAPE)

        def shard_loss(x, weights):
            return jax.lax.psum(loss(x, weights, axis_name="devices"), "devices")

        total = jax.shard_map(
            shard_loss, mesh=mesh, in_specs=(P("devices"), P("devices")), out_specs=P()
        )
        assert_close(jax.jit(jax.grad(total))(x, weights), jax.jit(jax.grad(loss))(x, weights))

    def test_pmap(self):
        x, weights = draw(), jax.random.normal(jax.random.key(1), SHAPE)

        def shards(a):
            return a.reshape(DEVICES, -1, *SHAPE[1:])

        gradient = jax.pmap(
            jax.grad(functools.partial(loss, axis_name="devices")), axis_name="devices"
        )(shards(x), shards(weights))
        assert_close(gradient.reshape(SHAPE), jax.jit(jax.grad(loss))(x, weights))

    def test_jit_with_sharded_inputs(self, mesh):
        x, weights = draw(), jax.random.normal(jax.random.key(1), SHAPE)
        sharding = NamedSharding(mesh, P("devices"))
        run = jax.jit(jax.grad(loss))
        assert_close(
            run(jax.device_put(x, sharding), jax.device_put(weights, sharding)), run(x, weights)
        )


# jaxlib 0.6 leaves two of one program beside each other, for Flax's layer too.
merges_all_reduces = pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="this XLA does not merge all-reduces"
)


@pytest.mark.usefixtures("as_users_compile")
class TestAllReduces:
    """Counted in the program that XLA compiled."""

    @pytest.mark.parametrize("shrinkage", ["none", "stein", "toward_running"])
    @pytest.mark.parametrize("masked", [False, True])
    def test_one_in_shard_map(self, mesh, shrinkage, masked):
        x, mask = draw(), jnp.arange(16).reshape(16, 1, 1, 1) % 3 > 0
        mapped = on_shards(
            functools.partial(layer, axis_name="devices", shrinkage=shrinkage),
            mesh,
            n_arrays=2 if masked else 1,
        )
        arguments = (x, mask) if masked else (x,)
        assert collectives(jax.jit(mapped).lower(*arguments).compile()) == ["all-reduce"]

    @merges_all_reduces
    @pytest.mark.parametrize("shrinkage", ["none", "stein", "toward_running"])
    @pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
    def test_one_under_jit(self, shrinkage, axis_type):
        mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(axis_type,))
        x = jax.device_put(draw(), NamedSharding(mesh, P("devices")))
        run = jax.jit(functools.partial(layer, shrinkage=shrinkage))
        assert collectives(run.lower(x).compile()) == ["all-reduce"]

    def test_one_in_pmap(self):
        x = draw().reshape(DEVICES, -1, *SHAPE[1:])
        run = jax.pmap(functools.partial(layer, axis_name="devices"), axis_name="devices")
        assert collectives(run.lower(x).compile()) == ["all-reduce"]

    def test_one_per_layer_in_a_model(self, mesh):
        model = nnx.Sequential(
            *(
                layer
                for i in range(3)
                for layer in (
                    nnx.Conv(5, 5, (3, 3), rngs=nnx.Rngs(i)),
                    NNXSteinBatchNorm(5, axis_name="devices", rngs=nnx.Rngs(i)),
                )
            )
        )
        graph, state = nnx.split(model)

        def forward(state, x):
            model = nnx.merge(graph, state)
            return model(x), nnx.state(model, nnx.BatchStat)

        mapped = jax.shard_map(
            forward, mesh=mesh, in_specs=(P(), P("devices")), out_specs=(P("devices"), P())
        )
        compiled = jax.jit(mapped).lower(state, draw()).compile()
        assert collectives(compiled) == ["all-reduce"] * 3

    def test_two_without_fast_variance(self, mesh):
        mapped = on_shards(
            functools.partial(layer, axis_name="devices", use_fast_variance=False), mesh
        )
        compiled = jax.jit(mapped).lower(draw()).compile()
        assert collectives(compiled) == ["all-reduce"] * 2
        assert " conditional(" not in compiled.as_text()


class TestUnequalShards:
    def test_masks_that_leave_shards_of_any_size(self, mesh):
        """3, 0, 4 and 1 valid examples of 4 a shard."""
        x = draw()
        mask = jnp.asarray([1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1], bool)
        mask = mask.reshape(16, 1, 1, 1)
        for shrinkage in ("none", "stein", "toward_running"):
            run = functools.partial(layer, shrinkage=shrinkage)
            mapped = on_shards(functools.partial(run, axis_name="devices"), mesh, n_arrays=2)
            y, running = jax.jit(mapped)(x, mask)
            alone_y, alone_running = jax.jit(run)(x[mask.ravel()])
            assert_close(y[mask.ravel()], alone_y)
            assert_close(running, alone_running)

    def test_all_false_mask_on_every_shard(self, mesh):
        mapped = on_shards(functools.partial(layer, axis_name="devices"), mesh, n_arrays=2)
        y, running = jax.jit(mapped)(draw(), jnp.zeros((16, 1, 1, 1), bool))
        assert_close(running, RUNNING, 0)
        assert np.all(np.isfinite(y))


@pytest.mark.usefixtures("as_users_compile")
class TestFarFromZero:
    @pytest.mark.parametrize("use_fast_variance", [True, False])
    def test_large_offset_on_the_first_call(self, mesh, use_fast_variance):
        """Mean 1e4, standard deviation 1, on four devices."""
        rng = np.random.default_rng(0)
        x = jnp.asarray(1e4 + rng.normal(size=(64, 4, 4, 5)), jnp.float32)
        mapped = on_shards(
            functools.partial(
                layer, axis_name="devices", shrinkage="none", use_fast_variance=use_fast_variance
            ),
            mesh,
        )
        for y, _ in (
            jax.jit(mapped)(x),
            jax.jit(functools.partial(layer, shrinkage="none"))(
                jax.device_put(x, NamedSharding(mesh, P("devices")))
            ),
        ):
            np.testing.assert_allclose(np.asarray(y, np.float64).std((0, 1, 2)), 1.0, rtol=1e-2)


def test_groups_of_devices_are_batches_of_their_own():
    x = draw()
    groups = [[0, 1], [2, 3]]
    got = jax.pmap(
        lambda x: batch_statistics(x, axis_name="devices", axis_index_groups=groups),
        axis_name="devices",
    )(x.reshape(DEVICES, -1, *SHAPE[1:]))
    for group, half in enumerate((x[:8], x[8:])):
        want = batch_statistics(half)
        for device in groups[group]:
            assert_close(got.mean[device], want.mean)
            assert_close(got.variance[device], want.variance)


def test_groups_of_unequal_sizes():
    x = draw()
    got = jax.pmap(
        lambda x: batch_statistics(
            x, noise=True, axis_name="devices", axis_index_groups=[[0, 1, 2], [3]]
        ),
        axis_name="devices",
    )(x.reshape(DEVICES, -1, *SHAPE[1:]))
    for device, part in ((0, x[:12]), (3, x[12:])):
        want = batch_statistics(part, noise=True)
        for name, value in want._asdict().items():
            assert_close(getattr(got, name)[device], value)


def test_two_mesh_axes():
    mesh = jax.make_mesh((2, 2), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
    x = draw()
    mapped = jax.shard_map(
        functools.partial(layer, axis_name=("rows", "columns")),
        mesh=mesh,
        in_specs=P(("rows", "columns")),
        out_specs=(P(("rows", "columns")), P()),
    )
    assert_close(jax.jit(mapped)(x), jax.jit(layer)(x))


@pytest.mark.parametrize("spec", [P(None, "devices"), P(None, None, None, "devices")])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_inputs_sharded_over_other_axes(spec, axis_type):
    """Over pixels, or over channels: not the fast way, the same result."""
    x = draw(shape=(16, 4, 4, 8))
    mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(axis_type,))

    def run(x):
        return stein_batch_norm(x, shrinkage="stein").y

    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    assert_close(jax.jit(run)(sharded), jax.jit(run)(x))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_of_some_of_the_devices(axis_type):
    """Three of four: no number of parts that fits all devices fits these."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("devices",), axis_types=(axis_type,))
    x = draw(shape=(12, 4, 5))

    def run(x):
        return stein_batch_norm(x, shrinkage="stein").y

    sharded = jax.device_put(x, NamedSharding(mesh, P("devices")))
    assert_close(jax.jit(run)(sharded), jax.jit(run)(x))


def test_linen_training_step_in_pmap():
    module = SteinBatchNorm(use_running_average=False, axis_name="devices", momentum=0.5)
    x = draw()
    variables = module.init(jax.random.key(0), x[:4])

    def step(variables, x):
        return module.apply(variables, x, mutable=["batch_stats"])

    y, updated = jax.pmap(step, axis_name="devices", in_axes=(None, 0))(
        variables, x.reshape(DEVICES, -1, *SHAPE[1:])
    )
    want_y, want = jax.jit(
        lambda v, x: module.clone(axis_name=None).apply(v, x, mutable=["batch_stats"])
    )(variables, x)
    assert_close(y.reshape(SHAPE), want_y)
    assert_close(jax.tree.map(lambda a: a[0], updated), want)


@pytest.mark.parametrize(
    ("kind", "inside"), [("shard_map", True), ("unchecked shard_map", False), ("pmap", False)]
)
def test_where_gradients_are_averaged(kind, inside):
    """Of parameters that all devices share: within the loss, or afterwards (docs/devices.md)."""
    x, weights = draw(), draw(0.0)
    scale = jnp.linspace(0.5, 1.5, 5)

    def loss_of(scale, x, weights, **options):
        y = stein_batch_norm(x, scale, None, RUNNING, momentum=0.5, **options).y
        return jnp.mean(weights * jnp.sin(y))

    def gradient(scale, x, weights):
        def loss(scale):
            value = loss_of(scale, x, weights, axis_name="devices")
            return jax.lax.pmean(value, "devices") if inside else value

        found = jax.grad(loss)(scale)
        return found if inside else jax.lax.pmean(found, "devices")

    if kind == "pmap":
        parts = (a.reshape(DEVICES, -1, *SHAPE[1:]) for a in (x, weights))
        got = jax.pmap(gradient, axis_name="devices", in_axes=(None, 0, 0))(scale, *parts)
    else:
        mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(AxisType.Auto,))
        checked = {} if kind == "shard_map" else {"check_vma": False}
        got = jax.jit(
            jax.shard_map(
                gradient, mesh=mesh, in_specs=(P(), *2 * (P("devices"),)), out_specs=P(), **checked
            )
        )(scale, x, weights)[None]
    want = jax.grad(loss_of)(scale, x, weights)
    assert_close(got, jnp.broadcast_to(want, got.shape))
