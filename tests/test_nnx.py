"""What the NNX layer adds to the pure function: modes, views, conversion, telemetry."""

import collections
import inspect
import warnings

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from steinnorm import shrinkage as rules
from steinnorm.nnx import ShrinkageFactor, SteinBatchNorm, calibrate, convert, freeze, revert


@pytest.fixture
def x(key):
    return 2 + 3 * jax.random.normal(key, (8, 4, 5))


class Net(nnx.Module):
    """BatchNorms as an attribute, in a list, inside another module and shared."""

    def __init__(self, rngs):
        self.first = nnx.BatchNorm(5, momentum=0.8, rngs=rngs)
        self.blocks = nnx.List([nnx.Sequential(nnx.BatchNorm(5, rngs=rngs)) for _ in range(2)])
        self.shared = self.first
        self.linear = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = nnx.relu(self.linear(block(x)))
        return self.shared(x)


def test_takes_every_argument_of_flax_with_the_same_default():
    def defaults(cls):
        return {
            name: str(p.default) if "init" in name else p.default
            for name, p in inspect.signature(cls.__init__).parameters.items()
        }

    theirs, ours = defaults(nnx.BatchNorm), defaults(SteinBatchNorm)
    assert list(ours)[: len(theirs)] == list(theirs)
    for name in set(theirs) - {"bias_init", "scale_init"}:
        assert ours[name] == theirs[name], name
    assert set(ours) - set(theirs) == {"shrinkage", "test_statistics"}
    layer = SteinBatchNorm(3, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.scale[...], np.ones(3))
    np.testing.assert_array_equal(layer.bias[...], np.zeros(3))


def test_train_and_eval(x):
    layer = SteinBatchNorm(5, momentum=0.0, rngs=nnx.Rngs(0))
    y = layer(x)
    layer.eval()
    recorded = layer.mean[...]
    np.testing.assert_allclose(layer(x), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer(x[:1]), y[:1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.mean[...], recorded)
    layer.train()
    layer(x + 1)
    assert np.any(layer.mean[...] != recorded)


def test_views_select_the_source_of_statistics(x):
    layer = SteinBatchNorm(5, shrinkage="none", rngs=nnx.Rngs(0))
    running = nnx.view(layer, use_running_average=True)
    batch = nnx.view(running, test_statistics="batch")
    assert (running.test_statistics, batch.test_statistics) == ("running", "batch")
    np.testing.assert_allclose(batch(x).std((0, 1)), 1.0, rtol=1e-3)
    np.testing.assert_allclose(running(x), x, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer.mean[...], np.zeros(5))
    with pytest.raises(ValueError, match="running, batch, shrunk"):
        nnx.view(layer, test_statistics="none")


def test_bfloat16_inference_keeps_float32_running_statistics():
    """A running mean of 1000.3 and x = 1001: in bfloat16 both would be 1000."""
    layer = SteinBatchNorm(1, dtype=jnp.bfloat16, use_running_average=True, rngs=nnx.Rngs(0))
    layer.mean[...] = jnp.array([1000.3])
    y = layer(jnp.array([[1000.0]], jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), -0.3, rtol=1e-2)


def test_jit_grad_and_state(x):
    layer = SteinBatchNorm(5, rngs=nnx.Rngs(0))

    @nnx.jit
    def step(layer, x):
        return nnx.grad(lambda layer: jnp.sum(jnp.square(layer(x))))(layer)

    gradients = step(layer, x)
    assert gradients["scale"][...].shape == (5,)
    assert np.any(layer.mean[...] != 0)


def test_recorded_values_do_not_leak_a_gradients_trace(x):
    layer = SteinBatchNorm(5, rngs=nnx.Rngs(0))
    nnx.grad(lambda layer, x: jnp.sum(layer(x) ** 2))(layer, x)
    assert np.all(np.isfinite(layer.mean[...]))
    graph, state = nnx.split(layer)

    def loss(x, state):
        layer = nnx.merge(graph, state, copy=True)
        y = layer(x)
        return jnp.sum(y**2), nnx.state(layer, nnx.BatchStat)

    _, updated = jax.grad(loss, has_aux=True)(x, state)
    assert np.all(np.isfinite(updated["mean"][...]))


@pytest.mark.parametrize("axis", [(1, 3), 1])
def test_several_feature_axes(axis, key):
    x = jax.random.normal(key, (6, 2, 4, 3))
    features = 6 if axis == (1, 3) else 2
    y = SteinBatchNorm(features, axis=axis, shrinkage="none", rngs=nnx.Rngs(0))(x)
    reduced = tuple(a for a in range(4) if a not in np.atleast_1d(axis))
    np.testing.assert_allclose(y.std(reduced), 1.0, rtol=1e-3)


class TestTelemetry:
    def test_factors_are_sown_in_a_capture(self, x):
        layer = SteinBatchNorm(5, rngs=nnx.Rngs(0))
        _, sown = nnx.capture(layer, ShrinkageFactor)(x)
        factors = nnx.to_pure_dict(sown)
        assert 0.5 <= factors["mean_factor"][0] <= 1  # 3/(C+1) is the least at C = 5
        assert factors["variance_factor"][0].shape == ()

    def test_nothing_is_added_without_a_capture(self, x):
        layer = SteinBatchNorm(5, rngs=nnx.Rngs(0))
        before = nnx.to_pure_dict(nnx.state(layer)).keys()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(x)
        assert nnx.to_pure_dict(nnx.state(layer)).keys() == before


@flax.struct.dataclass
class Holder:
    norm: nnx.BatchNorm
    other: None = None


HOLDERS = {
    "dataclass": (Holder, lambda held: held.norm),
    "FrozenDict": (lambda norm: flax.core.FrozenDict(norm=norm), lambda held: held["norm"]),
    "defaultdict": (
        lambda norm: collections.defaultdict(list, norm=norm),
        lambda held: held["norm"],
    ),
}


class TestConvert:
    def test_swaps_all_and_keeps_inference(self, x):
        model = Net(nnx.Rngs(0))
        model(x)
        with pytest.warns(UserWarning, match="never fitted to that"):
            converted = convert(model, "jsnorm", test_statistics="batch")
        norms = [m for _, m in nnx.iter_modules(converted) if isinstance(m, nnx.BatchNorm)]
        assert [type(m) for m in norms] == [SteinBatchNorm] * 3
        assert {m.shrinkage for m in norms} == {"jsnorm"}
        assert converted.first.momentum == 0.8
        assert converted.shared is converted.first
        model.eval()
        converted.eval()
        converted.set_attributes(test_statistics="running")
        np.testing.assert_allclose(converted(x), model(x), rtol=1e-5, atol=1e-5)

    def test_revert_is_the_way_back(self, x):
        model = Net(nnx.Rngs(0))
        model(x)
        back = revert(convert(model))
        assert type(back.first) is nnx.BatchNorm
        graph, state = nnx.split(model)
        back_graph, back_state = nnx.split(back)
        assert graph == back_graph
        jax.tree.map(np.testing.assert_array_equal, back_state, state)
        model.eval()
        back.eval()
        np.testing.assert_array_equal(back(x), model(x))

    @pytest.mark.parametrize("test_statistics", ["batch", "shrunk"])
    def test_warns_where_a_trained_model_would_be_evaluated_with_another_rule(
        self, x, test_statistics
    ):
        """A network of CIFAR-10 that was trained with batch norm had 60 % so, and 31 with stein."""
        model = Net(nnx.Rngs(0))
        options = {"test_statistics": test_statistics}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            convert(model, **options)  # to be trained
            nnx.eval_shape(lambda: convert(Net(nnx.Rngs(0)), **options))
            model(x)
            convert(model)
            convert(model, test_statistics="calibrated")
            convert(model, "none", **options)
            convert(model, "toward_running", **options)
            nnx.jit(lambda model: convert(model, **options)(x))(model)  # not known under a trace
            jax.jit(lambda x: nnx.relu(convert(model)(x)))(x)
            abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
            for more in ({}, options):
                assert isinstance(convert(abstract, **more).first, SteinBatchNorm)
        with pytest.warns(
            UserWarning, match=f"'{test_statistics}'.*by 'stein'.*shrinkage=\"none\""
        ):
            convert(model, **options)
        with pytest.warns(UserWarning, match="never fitted"):  # closed over: its values are known
            jax.jit(lambda x: nnx.relu(convert(model, **options)(x)))(x)
        model.first.mean.set_value(np.asarray(model.first.mean[...]))  # as a checkpoint may give
        with pytest.warns(UserWarning, match="never fitted"):
            convert(model, **options)

    def test_leaves_the_model_alone(self, x):
        model = Net(nnx.Rngs(0))
        converted = convert(model)
        converted(x)
        assert type(model.first) is nnx.BatchNorm
        np.testing.assert_array_equal(model.first.mean[...], np.zeros(5))

    def test_a_single_layer_and_its_metadata(self):
        layer = nnx.BatchNorm(3, scale_metadata={"origin": "checkpoint"}, rngs=nnx.Rngs(0))
        layer = convert(layer, rules.stein(0.5))
        assert type(layer) is SteinBatchNorm
        assert layer.scale.get_metadata()["origin"] == "checkpoint"

    @pytest.mark.filterwarnings("ignore:a calibration from:UserWarning")
    @pytest.mark.parametrize("kind", HOLDERS)
    def test_layers_are_found_in_whatever_holds_them(self, x, kind):
        make, get = HOLDERS[kind]
        model = nnx.Sequential(nnx.Linear(5, 5, rngs=nnx.Rngs(0)))
        model.held = nnx.data(make(nnx.BatchNorm(5, rngs=nnx.Rngs(0))))
        converted = convert(model)
        assert type(converted.held) is type(model.held)
        assert type(get(converted.held)) is SteinBatchNorm
        assert type(get(model.held)) is nnx.BatchNorm
        assert get(freeze(converted, "held").held).frozen == "statistics"
        assert get(converted.held).frozen == "no"
        calibrated = calibrate(converted, [x], call=lambda model, x: get(model.held)(x))
        assert hasattr(get(calibrated.held), "calibrated_mean")
        assert type(get(revert(calibrated).held)) is nnx.BatchNorm

    def test_warns_about_subclasses(self):
        class Fused(nnx.BatchNorm):
            pass

        rngs = nnx.Rngs(0)
        model = nnx.Sequential(nnx.BatchNorm(3, rngs=rngs), Fused(3, rngs=rngs))
        with pytest.warns(UserWarning, match="Fused is a subclass of BatchNorm"):
            converted = convert(model)
        assert [type(layer) for layer in converted.layers] == [SteinBatchNorm, Fused]

    def test_revert_warns_about_subclasses_too(self):
        class Fused(SteinBatchNorm):
            pass

        rngs = nnx.Rngs(0)
        model = nnx.Sequential(SteinBatchNorm(3, rngs=rngs), Fused(3, rngs=rngs))
        with pytest.warns(UserWarning, match="Fused is a subclass of SteinBatchNorm"):
            assert [type(layer) for layer in revert(model).layers] == [nnx.BatchNorm, Fused]

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: convert(3), TypeError, "flax.nnx.Module; got int"),
            (lambda: convert(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), ValueError, "no BatchNorm"),
            (lambda: revert(Net(nnx.Rngs(0))), ValueError, "no SteinBatchNorm"),
            (lambda: convert(Net(nnx.Rngs(0)), "stain"), ValueError, "got 'stain'"),
        ],
    )
    def test_errors(self, call, error, message):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shrinkage": "stain"}, ValueError, "none, stein.*got 'stain'"),
        ({"momentum": 2.0}, ValueError, r"\[0, 1\].*got 2.0"),
        ({"epsilon": float("inf")}, ValueError, "finite"),
        ({"test_statistics": "moving"}, ValueError, "running, batch, shrunk"),
    ],
)
def test_errors_come_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        SteinBatchNorm(3, rngs=nnx.Rngs(0), **options)


def test_errors_of_a_call(x):
    with pytest.raises(ValueError, match="num_features=3; got an input of shape"):
        SteinBatchNorm(3, rngs=nnx.Rngs(0))(x)
    with pytest.raises(ValueError, match=r"model.train\(\) or model.eval\(\)"):
        SteinBatchNorm(5, use_running_average=None, rngs=nnx.Rngs(0))(x)
