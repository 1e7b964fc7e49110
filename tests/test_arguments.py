"""What is passed in the wrong way is refused, with what to do about it, by all front ends alike."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec as P

from steinnorm import RunningStatistics, Shrinkage, batch_statistics, linen, stein_batch_norm
from steinnorm import nnx as stein_nnx
from steinnorm import shrinkage as rules
from tests import reference

FEATURES = 4
X = np.random.default_rng(0).normal(size=(128, FEATURES)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(2, 3, 5, FEATURES)).astype(np.float32)
RUNNING = RunningStatistics(jnp.zeros(FEATURES), jnp.ones(FEATURES))
COMPLEX = jnp.asarray(X[:8] + 1j * X[8:16])
MEAN = (X[:8] + 1j * X[8:16]).mean(0)


def nnx_layer(**options):
    return stein_nnx.SteinBatchNorm(FEATURES, rngs=nnx.Rngs(0), **options)


def linen_layer(**options):
    return linen.SteinBatchNorm(use_running_average=False, **options)


def linen_calibrated(batches, apply=None):
    net = linen.SteinBatchNorm(use_running_average=True)
    variables = net.init(jax.random.key(0), X)
    return linen.calibrate(net if apply is None else apply(net), variables, batches)["calibration"]


def nnx_calibrated(batches, **options):
    return stein_nnx.calibrate(nnx_layer(), batches, **options)


CALIBRATE = {
    "linen": linen_calibrated,
    "linen apply": lambda batches: linen_calibrated(batches, lambda net: net.apply),
    "nnx": nnx_calibrated,
}


@pytest.mark.parametrize("calibrate", CALIBRATE.values(), ids=CALIBRATE)
class TestBatches:
    @pytest.mark.parametrize("array", [X, jnp.asarray(X)])
    def test_one_array_is_no_list_of_batches(self, calibrate, array):
        with pytest.raises(
            TypeError, match=r"an array of shape \(128, 4\).*pass a list of it: \[x"
        ):
            calibrate(array)

    @pytest.mark.parametrize(("wrong", "came"), [({"image": X}, "a dict"), (3, "an? int")])
    def test_nor_are_a_dictionary_and_a_number(self, calibrate, wrong, came):
        with pytest.raises(TypeError, match=f"must be an iterable of batches.*got {came}"):
            calibrate(wrong)

    @pytest.mark.parametrize(
        ("batch", "came"),
        [((X, np.zeros(128)), "a tuple of 2"), ([X], "a list of 1"), ({"x": X}, "dict")],
    )
    def test_a_batch_of_several_parts(self, calibrate, batch, came):
        with pytest.raises(TypeError, match=f"cannot take a batch, {came}, as its one") as error:
            calibrate([batch])
        assert "lambda" in str(error.value)
        assert "(x for x, *_ in loader)" in str(error.value)
        assert error.value.__cause__ is not None


def test_what_the_messages_say_to_do_works():
    loader = [(X, np.zeros(128))]
    want = reference.calibration(X)
    apply = functools.partial(linen_calibrated, loader)
    inputs = (x for x, *_ in loader)
    for found in (
        linen_calibrated(inputs),
        apply(
            lambda net: (
                lambda variables, batch, **options: net.apply(variables, batch[0], **options)
            )
        ),
    ):
        np.testing.assert_allclose(found["mean"], want.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["var_spread"], want.variance_spread, rtol=1e-4)
    layer = nnx_calibrated(loader, call=lambda model, batch: model(batch[0]))
    np.testing.assert_allclose(layer.calibrated_mean[...], want.mean, rtol=1e-5, atol=1e-6)


def test_errors_of_a_call_of_ones_own_are_left_as_they_are():
    def call(model, batch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        nnx_calibrated([(X, X)], call=call)


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


class TestFreeze:
    def test_every_path_has_to_name_a_layer(self):
        model = nnx.Sequential(nnx_layer(), nnx_layer())
        with pytest.raises(
            ValueError, match=r"by 'layers/2'; the model has: 'layers/0', 'layers/1"
        ):
            stein_nnx.freeze(model, ["layers/1", "layers/2"])
        frozen = stein_nnx.freeze(model, ["layers", "layers/1"])  # one inside of the other
        assert [layer.frozen for layer in frozen.layers] == ["statistics"] * 2

    def test_in_linen_too(self):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return linen_layer(name="b")(linen_layer(name="a")(x))

        variables = Net().init(jax.random.key(0), X)
        with pytest.raises(ValueError, match="by 'bb', 'c'; the model has: 'a', 'b'"):  # noqa: SIM117
            with linen.freeze(["a", "bb", "c"]):
                Net().apply(variables, X, mutable=["batch_stats"])

    def test_flax_layers_have_to_be_converted(self):
        model = nnx.Sequential(nnx.BatchNorm(FEATURES, rngs=nnx.Rngs(0)))
        with pytest.raises(
            ValueError, match=r'has: none. convert\(model, "none"\) makes them of nnx'
        ):
            stein_nnx.freeze(model)


INFERENCE = {"use_running_average": True}
CALIBRATED = {**INFERENCE, "test_statistics": "calibrated"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"running": tuple(RUNNING)}, TypeError, r"RunningStatistics\(mean=.*got a tuple of 2"),
        ({"running": RUNNING._asdict()}, TypeError, "running must be .*got dict"),
        ({"running": RunningStatistics([0.0] * 4, [1.0] * 4)}, TypeError, "running.mean.*got list"),
        (
            {"running": RUNNING, "calibration": (0, 1, 1, 1), **CALIBRATED},
            TypeError,
            r"steinnorm.Calibration\(mean=..., variance=..., mean_spread=.*got a tuple of 4",
        ),
        (
            {"scale": [1.0] * 4},
            TypeError,
            r"scale must be an array .*\(4,\); got list.*jnp.asarray",
        ),
        ({"bias": 1.0}, TypeError, "bias must be an array .*got float"),
        ({"epsilon": "1e-5"}, TypeError, "epsilon must be a real number; got '1e-5'"),
        ({"epsilon": 1j}, TypeError, "epsilon must be a real number; got 1j"),
        ({"momentum": "0.9"}, TypeError, "momentum must be a real number; got '0.9'"),
        ({"momentum": None}, TypeError, "momentum must be a real number; got None"),
        ({"momentum": jnp.ones(4)}, ValueError, r"momentum must be a scalar; got shape \(4,\)"),
        ({"axis": ()}, ValueError, "at least one feature axis"),
        ({"mask": "all"}, TypeError, "mask must be a boolean array.*got str"),
        ({"mask": COMPLEX}, TypeError, "mask must be a boolean array.*got dtype complex64"),
        (
            {"mask": np.ones((3, 9), bool), "running": RUNNING, **INFERENCE},
            ValueError,
            r"broadcastable to the input's shape \(128, 4\); got shape \(3, 9\)",
        ),
    ],
)
def test_the_pure_function(options, error, message):
    with pytest.raises(error, match=message):
        stein_batch_norm(X, **options)


@pytest.mark.parametrize("call", [stein_batch_norm, nnx_layer, None])
@pytest.mark.parametrize(
    ("x", "message"),
    [((X, X), "got a tuple of 2"), (None, "got NoneType"), (np.array(["a"]), "got dtype <U1")],
)
def test_inputs_that_are_no_arrays(call, x, message):
    if call is None:
        call = functools.partial(linen_layer().init, jax.random.key(0))
    elif call is nnx_layer:
        call = nnx_layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=f"x must be .*{message}"):
            call(x)


@pytest.mark.parametrize("layer", [linen_layer, nnx_layer])
@pytest.mark.parametrize("options", [{"momentum": "0.9"}, {"epsilon": "1e-5"}])
def test_layers_refuse_text_for_numbers(layer, options):
    with pytest.raises(TypeError, match="must be a real number"):
        layer(**options)


class TestMasks:
    @pytest.mark.parametrize(
        ("shape", "hint"),
        [((2, 3, 5), r"mask\[..., None\]"), ((2,), r"mask.reshape\(2, 1, 1, 1\)")],
    )
    def test_missing_axes_are_named(self, shape, hint):
        with pytest.raises(ValueError, match=f"as in NumPy.*{hint}"):
            stein_batch_norm(IMAGES, mask=np.ones(shape, bool))

    def test_as_many_as_channels_are_channels(self):
        """Also where the batch has as many examples (docs/layer.md)."""
        mask = np.array([True, False, True, True])
        np.testing.assert_array_equal(batch_statistics(X[:4], mask=mask).count, [4, 0, 4, 4])
        assert batch_statistics(X[:4], mask=mask[:, None]).count == 3

    def test_numbers_count_where_they_are_not_zero(self):
        mask = np.array([0.5, 0.0, 2.0, 1.0], np.float32)[:, None]
        assert stein_batch_norm(X[:4], mask=mask).batch.count == 3

    def test_lists(self):
        assert stein_batch_norm(X[:3], mask=[[True], [False], [True]]).batch.count == 2

    def test_nothing_and_no_running_statistics(self):
        used = stein_batch_norm(X[:4], mask=np.zeros((4, 1), bool)).used
        np.testing.assert_array_equal(used.mean, 0)
        np.testing.assert_array_equal(used.variance, 1)


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


def first():
    return RunningStatistics(jnp.zeros(FEATURES, jnp.float32), jnp.ones(FEATURES, jnp.float32))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rules.stein(np.array([0.5, 0.5])), ValueError, r"scalar; got shape \(2,\)"),
        (lambda: rules.stein("half"), TypeError, "fraction must be a real number; got 'half'"),
        (lambda: rules.ridge("weak"), TypeError, "strength must be a real number; got 'weak'"),
        (
            lambda: rules.by_name("ridge", fraction=0.1),
            TypeError,
            "'ridge' takes strength; got fraction",
        ),
        (lambda: rules.by_name("none", a=1), TypeError, "'none' takes no options; got a"),
    ],
)
def test_rules(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_lambdas_made_alike_differ():
    """As the docstring of Shrinkage says."""

    def make():
        return Shrinkage("own", lambda b, r: b.mean, lambda b, r: b.variance)

    assert make() != make()
    assert rules.stein(0.5) == rules.stein(0.5)


class TestEpsilonOfEachFeature:
    @pytest.mark.parametrize("shape", [(3, FEATURES), (3 * FEATURES,)])
    def test_several_feature_axes_in_nnx(self, shape):
        x = IMAGES[:, :, 0]
        epsilon = np.linspace(0.1, 1, 12, dtype=np.float32)
        layer = stein_nnx.SteinBatchNorm(
            12, axis=(1, 2), epsilon=epsilon.reshape(shape), rngs=nnx.Rngs(0)
        )
        layer.eval()
        np.testing.assert_allclose(layer(x), x / np.sqrt(1 + epsilon.reshape(3, 4)), rtol=1e-5)

    def test_in_nnx_it_is_part_of_the_state(self):
        assert "epsilon" in nnx.state(nnx_layer(epsilon=jnp.full(FEATURES, 1e-5)))

    def test_in_linen_the_module_has_no_hash(self):
        with pytest.raises(TypeError, match="hash"):
            hash(linen_layer(epsilon=jnp.full(FEATURES, 1e-5)))


def test_groups_where_jax_has_none(mesh):
    x, groups = X.reshape(32, 4, FEATURES), [[0, 1], [2, 3]]

    def run(x):
        return batch_statistics(x, axis_name="devices", axis_index_groups=groups).mean[None]

    def mapped(**options):
        return jax.jit(
            jax.shard_map(run, mesh=mesh, in_specs=P("devices"), out_specs=P("devices"), **options)
        )

    with pytest.raises(NotImplementedError, match=r"axis_index_groups=.*check_vma=False"):
        mapped()(x)
    got = mapped(check_vma=False)(x)
    for device, half in enumerate((x[:16], x[:16], x[16:], x[16:])):
        np.testing.assert_allclose(got[device], half.mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_revert_thaws():
    layer = stein_nnx.revert(stein_nnx.freeze(nnx_layer(), None))
    layer.train()
    layer(X)
    assert np.all(layer.mean[...] != 0)


@pytest.mark.parametrize("outside", [np.nan, np.inf])
def test_what_lies_outside_a_mask_reaches_gradients_by_the_output(outside):
    """As the layers' documentation of ``mask`` says, with the remedy."""
    mask = (np.arange(8) < 7)[:, None]
    x = jnp.asarray(np.where(mask, X[:8], outside))

    def loss(x, scale):
        y = stein_batch_norm(x, scale, None, RUNNING, mask=mask).y
        return jnp.sum(jnp.where(mask, y, 0) ** 3)

    def gradients(x):
        return jax.grad(loss, (0, 1))(x, jnp.ones(FEATURES))

    assert np.isfinite(loss(x, jnp.ones(FEATURES)))
    assert not any(np.isfinite(g).all() for g in gradients(x))
    assert all(np.isfinite(g).all() for g in gradients(jnp.where(mask, x, 0)))
