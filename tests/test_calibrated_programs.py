"""Calibrated inference as a program: dtypes, derivatives, export, devices and costs."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.hlo_text import collectives
from steinnorm import stein_batch_norm
from tests import reference
from tests.calibrated_layers import (
    CHANNELS,
    EPSILON,
    KINDS,
    KNOWN,
    RUNNING,
    SIZE,
    compiled,
    layer,
    library,
    shifted,
)
from tests.derivatives import assert_derivatives


class TestDtypes:
    def test_bfloat16(self):
        x = jnp.asarray(shifted(4), jnp.bfloat16)
        got, want = layer(x), layer(x.astype(jnp.float32))
        assert got.y.dtype == jnp.bfloat16
        assert got.factors[0].dtype == jnp.float32
        np.testing.assert_allclose(got.y.astype(jnp.float32), want.y, rtol=1e-2, atol=1e-2)

    @pytest.mark.usefixtures("x64")
    def test_float64(self):
        x = shifted(4).astype(np.float64)
        got = layer(x, values=library(dtype=jnp.float64))
        y, *factors = reference.calibrated(x, KNOWN, *RUNNING, epsilon=EPSILON)
        np.testing.assert_allclose(got.y, y, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.factors, factors, rtol=1e-9)
        layer(x)  # a float32 calibration serves a float64 input

    def test_large_means(self):
        known = KNOWN._replace(mean=KNOWN.mean + 1e4)
        x = (shifted(16).astype(np.float64) + 1e4).astype(np.float32)
        got = layer(x, values=library(known, (known.mean, RUNNING[1])))
        want, *_ = reference.calibrated(x, known, known.mean, RUNNING[1], epsilon=EPSILON)
        np.testing.assert_allclose(got.y, want, atol=1e-2)


class TestDerivatives:
    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("kind", KINDS)
    def test_they_are_those_of_what_is_evaluated(self, kind):
        values, x = library(dtype=jnp.float64), jnp.asarray(shifted(3), jnp.float64)
        weights = np.random.default_rng(1).normal(size=x.shape)
        assert all(0 < f < 1 for f in layer(x, kind, values=values).factors)

        def loss(x, known):
            y = layer(x, kind, values=values | {"calibration": known}).y
            return jnp.sum(weights * jnp.sin(y))

        assert_derivatives(lambda x: loss(x, values["calibration"]), x)

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_infinity_and_no_nan_on_the_way(self, kind):
        dead = KNOWN._replace(variance=np.where(np.arange(CHANNELS) < 3, 0, KNOWN.variance))
        x = shifted(4)
        x[..., 4] = 1.0
        still = np.broadcast_to(KNOWN.mean, x.shape).astype(np.float32)

        @jax.jit
        def gradient(x, mask, values):
            return jax.grad(lambda x: jnp.sum(jnp.sin(layer(x, kind, mask, values).y)))(x)

        with jax.debug_infs(True), jax.debug_nans(True):
            for batch in (x, x[:1], x[:1, :1, :1], still):
                jax.block_until_ready(gradient(batch, None, library(dead)))
            nothing = np.zeros((4, 1, 1, 1), bool)
            jax.block_until_ready(gradient(x, nothing, library(dead)))


class TestModes:
    def test_training_does_not_use_it(self):
        x, values = shifted(4), library()
        plain = stein_batch_norm(x, running=values["running"])
        got = stein_batch_norm(x, test_statistics="calibrated", **values)
        np.testing.assert_array_equal(got.y, plain.y)
        np.testing.assert_array_equal(got.running.mean, plain.running.mean)
        assert got.factors is None
        stein_batch_norm(x, running=values["running"], test_statistics="calibrated")

    @pytest.mark.parametrize("kind", KINDS)
    def test_errors(self, kind):
        options = {"use_running_average": True, "test_statistics": kind}
        values = library()
        with pytest.raises(ValueError, match=r"nnx.calibrate and steinnorm.linen.calibrate"):
            stein_batch_norm(shifted(2), running=values["running"], **options)
        with pytest.raises(TypeError, match=r"real input.*complex64"):
            stein_batch_norm(shifted(2) + 1j, shrinkage="none", **values, **options)
        short = jax.tree.map(lambda a: a[:3], values["calibration"])
        with pytest.raises(ValueError, match=r"calibration.mean must have the shape .*\(8,\)"):
            stein_batch_norm(shifted(2), **values | {"calibration": short}, **options)

    @pytest.mark.parametrize("kind", KINDS)
    def test_export_with_a_symbolic_batch(self, kind):
        def function(x, mask):
            return compiled(kind)(x, mask, library()).y

        (b,) = jax.export.symbolic_shape("b")
        exported = jax.export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(
            jax.ShapeDtypeStruct((b, *SIZE), "float32"),
            jax.ShapeDtypeStruct((b, 1, 1, 1), "bool"),
        )
        x, mask = shifted(5), np.arange(5).reshape(5, 1, 1, 1) > 0
        np.testing.assert_allclose(exported.call(x, mask), function(x, mask), rtol=1e-5, atol=1e-5)
        whole = jax.export.export(jax.jit(lambda x: compiled(kind)(x, None, library()).y))(
            jax.ShapeDtypeStruct((b, *SIZE), "float32")
        )
        np.testing.assert_allclose(whole.call(x), layer(x, kind).y, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.device_count() < 4, reason=f"needs 4 devices, got {jax.device_count()}")
@pytest.mark.parametrize("kind", KINDS)
class TestDevices:
    """B counts the examples of all devices."""

    def want(self, kind, mask=None):
        got = layer(shifted(8), kind, mask)
        return got.y, got.factors

    def assert_close(self, got, want):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)

    @pytest.mark.parametrize("masked", [False, True])
    def test_shard_map(self, kind, masked, mesh):
        mask = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool).reshape(8, 1, 1, 1) if masked else None

        def run(x, mask=None):
            got = layer(x, kind, mask, axis_name="devices")
            return got.y, got.factors

        mapped = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P("devices"),) * (1 + masked),
            out_specs=(P("devices"), P()),
        )
        arguments = (shifted(8), mask) if masked else (shifted(8),)
        self.assert_close(jax.jit(mapped)(*arguments), self.want(kind, mask))

    def test_pmap(self, kind):
        def run(x):
            got = layer(x, kind, axis_name="devices")
            return got.y, got.factors

        x = shifted(8)
        y, factors = jax.pmap(run, axis_name="devices")(x.reshape(4, 2, *SIZE))
        want = self.want(kind)
        self.assert_close((y.reshape(x.shape), [f[3] for f in factors]), (want[0], list(want[1])))

    @pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
    def test_jit_with_sharded_inputs(self, kind, axis_type):
        both = jax.make_mesh((2, 2), ("data", "model"), axis_types=(axis_type,) * 2)
        spec = P("data", None, None, "model")
        mask = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool).reshape(8, 1, 1, 1)
        with jax.set_mesh(both):
            x = jax.device_put(shifted(8), NamedSharding(both, spec))
            got = jax.jit(lambda x: layer(x, kind))(x)
            masked = jax.jit(lambda x, mask: layer(x, kind, mask))(x, mask)
        self.assert_close((got.y, got.factors), self.want(kind))
        self.assert_close((masked.y, masked.factors), self.want(kind, mask))


@pytest.mark.usefixtures("as_users_compile")
class TestCosts:
    @staticmethod
    def program(kind, examples=64, mask=None):
        x = jax.ShapeDtypeStruct((examples, 16, 16, CHANNELS), "float32")
        run = compiled(kind, shrinkage="none")
        return run.lower(x, mask, library()).compile()

    @pytest.mark.parametrize("masked", [False, True])
    def test_it_moves_no_more_bytes_than_batch_statistics_do(self, masked):
        mask = jax.ShapeDtypeStruct((64, 1, 1, 1), "bool") if masked else None
        x = 64 * 16 * 16 * CHANNELS * 4
        found = {
            kind: self.program(kind, mask=mask).cost_analysis()["bytes accessed"] / x
            for kind in ("batch", "calibrated")
        }
        assert found["calibrated"] <= 1.01 * found["batch"]  # per-channel values alone are added

    @pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
    @pytest.mark.parametrize("masked", [False, True])
    def test_one_all_reduce_of_as_many_numbers(self, mesh, masked):
        def run(x, mask, kind):
            return layer(x, kind, mask, axis_name="devices", shrinkage="none").y

        def reduced(kind):
            mask = P("devices") if masked else None
            mapped = jax.shard_map(
                functools.partial(run, kind=kind),
                mesh=mesh,
                in_specs=(P("devices"), mask),
                out_specs=P("devices"),
            )
            x = jax.ShapeDtypeStruct((8, *SIZE), "float32")
            some = jax.ShapeDtypeStruct((8, 1, 1, 1), "bool") if masked else None
            return collectives(jax.jit(mapped).lower(x, some).compile().as_text())

        batch, judged = reduced("batch"), reduced("calibrated")
        assert judged.all_reduces == batch.all_reduces == 1
        assert judged.always <= batch.always + masked  # the number of examples
        assert judged.others == batch.others == 0
