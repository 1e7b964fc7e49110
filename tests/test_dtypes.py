"""Dtypes of results, inputs and running statistics: what is refused, and what is kept."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from steinnorm import RunningStatistics, Shrinkage, linen, stein_batch_norm
from steinnorm import shrinkage as rules
from steinnorm.nnx import SteinBatchNorm
from tests.front_ends import COMPLEX, FEATURES, INFERENCE, MEAN, RUNNING, X, linen_layer, nnx_layer

DTYPES = {
    "pure": lambda dtype: stein_batch_norm(X, dtype=dtype).y,
    "linen": lambda dtype: linen_layer(dtype=dtype).init_with_output(jax.random.key(0), X)[0],
    "nnx": lambda dtype: nnx_layer(dtype=dtype)(X),
}


@pytest.mark.parametrize("call", DTYPES.values(), ids=DTYPES)
class TestResultDtype:
    @pytest.mark.parametrize("dtype", [jnp.int32, bool, "uint8"])
    def test_integers_are_refused(self, call, dtype):
        with pytest.raises(TypeError, match=rf"floating or complex.*got {jnp.dtype(dtype).name}"):
            call(dtype)

    def test_names_are_dtypes(self, call):
        assert call("bfloat16").dtype == jnp.bfloat16


def test_a_real_result_of_a_complex_input_is_refused():
    with pytest.raises(TypeError, match=r"dtype=float32 would drop .* complex64"):
        stein_batch_norm(COMPLEX, shrinkage="none", dtype=jnp.float32)


class TestComplex:
    @pytest.mark.parametrize(
        "rule",
        [*(name for name in rules.NAMES if name != "none"), rules.combine("none", "stein")],
        ids=str,
    )
    def test_rules_for_real_values_say_so(self, rule):
        with pytest.raises(
            TypeError, match=r"shrinkage '.*' needs a real input; got dtype complex64"
        ):
            stein_batch_norm(COMPLEX, running=RUNNING, shrinkage=rule)

    def test_shrunk_test_statistics_too(self):
        with pytest.raises(TypeError, match=r"'toward_running' needs a real input"):
            stein_batch_norm(
                COMPLEX,
                None,
                None,
                RUNNING,
                **INFERENCE,
                shrinkage="none",
                test_statistics="shrunk",
            )

    def test_inference_with_running_statistics_takes_any(self):
        y = stein_batch_norm(COMPLEX, None, None, RUNNING, **INFERENCE, epsilon=0.0).y
        np.testing.assert_allclose(y, COMPLEX, rtol=1e-6)

    def test_a_rule_of_ones_own_decides_itself(self):
        own = Shrinkage("own", lambda b, r: b.mean / 2, lambda b, r: b.variance)
        used = stein_batch_norm(COMPLEX, shrinkage=own).used
        np.testing.assert_allclose(used.mean, MEAN / 2, rtol=1e-5)


@pytest.mark.usefixtures("mixed_dtypes")
class TestRunningDtypes:
    def test_complex_means_need_a_complex_variable_in_nnx(self):
        layer = nnx_layer(shrinkage="none", momentum=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(TypeError, match=r"would lose its imaginary part.*jnp.complex64"):
                layer(COMPLEX)
            np.testing.assert_array_equal(layer.mean[...], 0)  # nothing was recorded
            layer.mean = nnx.BatchStat(jnp.zeros(FEATURES, jnp.complex64))
            layer(COMPLEX)
        np.testing.assert_allclose(layer.mean[...], MEAN, rtol=1e-5)
        assert layer.var[...].dtype == jnp.float32
        layer.eval()
        assert layer(COMPLEX).dtype == jnp.complex64

    def test_a_real_result_is_refused_in_both(self):
        layer = nnx_layer(shrinkage="none", dtype=jnp.float32)
        layer.eval()
        module = linen_layer(shrinkage="none", dtype=jnp.float32)
        for call in (lambda: layer(COMPLEX), lambda: module.init(jax.random.key(0), COMPLEX)):
            with pytest.raises(TypeError, match=r"dtype=float32 would drop .* complex64"):
                call()

    def test_in_linen_they_become_complex(self):
        layer = linen_layer(shrinkage="none", momentum=0.0)
        variables = layer.init(jax.random.key(0), COMPLEX)
        assert variables["batch_stats"]["mean"].dtype == jnp.float32
        _, updated = layer.apply(variables, COMPLEX, mutable=["batch_stats"])
        np.testing.assert_allclose(updated["batch_stats"]["mean"], MEAN, rtol=1e-5)

    def test_a_numpy_momentum_does_not_widen_them(self, x64):
        """So that a loop over steps, ``lax.scan``, keeps its types."""
        layer = linen_layer(momentum=np.float64(0.9))
        variables = layer.init(jax.random.key(0), jnp.asarray(X))

        def step(batch_stats, x):
            _, updated = layer.apply(variables | {"batch_stats": batch_stats}, x, mutable=True)
            return updated["batch_stats"], 0

        after, _ = jax.lax.scan(step, variables["batch_stats"], jnp.asarray(X).reshape(2, 64, 4))
        assert {a.dtype for a in jax.tree.leaves(after)} == {jnp.dtype("float32")}
        traced = jax.jit(lambda m: stein_batch_norm(jnp.asarray(X), running=first(), momentum=m))
        assert traced(jnp.float64(0.9)).running.mean.dtype == jnp.float32

    def test_a_float64_input_widens_them_in_linen_alone(self, x64):
        x = np.asarray(X, np.float64)
        layer = linen_layer(momentum=0.0, shrinkage="none")
        _, updated = layer.apply(layer.init(jax.random.key(0), x), x, mutable=["batch_stats"])
        assert updated["batch_stats"]["mean"].dtype == jnp.float64
        np.testing.assert_allclose(updated["batch_stats"]["mean"], x.mean(0), rtol=1e-12)
        layer = nnx_layer(momentum=0.0, shrinkage="none")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(x)
        assert layer.mean[...].dtype == jnp.float32
        np.testing.assert_allclose(layer.mean[...], x.mean(0), rtol=1e-6)

    def test_of_low_precision_they_become_float32_with_a_float32_input(self):
        layer = linen_layer(param_dtype=jnp.bfloat16, force_float32_reductions=False)
        variables = layer.init(jax.random.key(0), X)
        _, updated = layer.apply(variables, X, mutable=["batch_stats"])
        assert variables["batch_stats"]["mean"].dtype == jnp.bfloat16
        assert updated["batch_stats"]["mean"].dtype == jnp.float32

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, "float16", jnp.float32, None])
    @pytest.mark.parametrize("of_input", [jnp.bfloat16, jnp.float32])
    def test_of_low_precision_they_are_those_of_flax(self, dtype, of_input, mixed_dtypes):
        options = {"param_dtype": jnp.bfloat16, "force_float32_reductions": False, "dtype": dtype}
        x, found = jnp.asarray(X, of_input), []
        for layer in (linen_layer(shrinkage="none", **options), nn.BatchNorm(False, **options)):
            variables = layer.init(jax.random.key(0), x)
            found.append(layer.apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"])
        for ours, flax in zip(*map(jax.tree.leaves, found), strict=True):
            assert ours.dtype == flax.dtype
            np.testing.assert_allclose(np.float64(ours), np.float64(flax), rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_inference_of_a_model_cast_to_low_precision_is_rounded_once(kind, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 8)) + 30, dtype)
    mean, var = jnp.full(8, 30.1, dtype), jnp.full(8, 1.3, dtype)
    if kind == "linen":
        affine = {"scale": jnp.ones(8, dtype), "bias": jnp.zeros(8, dtype)}
        variables = {"params": affine, "batch_stats": {"mean": mean, "var": var}}
        y = linen.SteinBatchNorm(use_running_average=True).apply(variables, x)
    else:
        layer = SteinBatchNorm(8, use_running_average=True, rngs=nnx.Rngs(0))
        nnx.update(layer, jax.tree.map(lambda a: a.astype(dtype), nnx.state(layer)))
        layer.mean[...], layer.var[...] = mean, var
        y = layer(x)
    assert y.dtype == dtype
    want = (np.float64(x) - np.float64(mean)) / np.sqrt(np.float64(var) + 1e-5)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(y), want, rtol=0.51 * eps, atol=2e-5)


def first():
    return RunningStatistics(jnp.zeros(FEATURES, jnp.float32), jnp.ones(FEATURES, jnp.float32))
