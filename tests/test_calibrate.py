"""The pass that calibrates: exact over batches, devices and masks; shared and stacked layers."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from steinnorm import Calibration, RunningStatistics, linen, stein_batch_norm
from steinnorm import nnx as stein_nnx
from steinnorm._calibration import Recorder, totals_of
from steinnorm.nnx import CalibrationStat, SteinBatchNorm
from tests import reference
from tests.test_calibrated import population

CHANNELS = 4
SIZE = (3, 2, CHANNELS)
X = population(0, 120, SIZE)
ATTRIBUTES = ("calibrated_mean", "calibrated_var", "mean_spread", "var_spread")
NAMES = ("mean", "var", "mean_spread", "var_spread")
pytestmark = pytest.mark.filterwarnings("ignore:a calibration from:UserWarning")


def batches(x=X, sizes=(50, 7, 1, 62)):
    return np.split(x, np.cumsum(sizes)[:-1])


def assert_calibration(found, want, tolerance=2e-5):
    for name, a, b in zip(NAMES, found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def of_layer(layer):
    return [getattr(layer, name)[...] for name in ATTRIBUTES]


def of_collection(held):
    return [held[name] for name in NAMES]


def norm(**options):
    """A layer whose running statistics and parameters are not as they were made."""
    layer = SteinBatchNorm(CHANNELS, rngs=nnx.Rngs(0), **options)
    layer.mean[...] = jnp.arange(4.0)
    layer.var[...] = jnp.array([1.0, 2.0, 0.5, 3.0])
    layer.scale[...] = jnp.array([1.0, 2.0, -0.5, 1.0])
    return layer


@jax.jit
def counted(x, mask=None):
    """What one call of a layer counts."""
    return totals_of(
        x,
        axis=-1,
        mask=mask,
        axis_name=None,
        axis_index_groups=None,
        use_fast_variance=True,
        reference=jnp.zeros(x.shape[-1]),
        epsilon=1e-5,
    )


def finished(recorder):
    return recorder.calibrations({"a": np.zeros(CHANNELS, np.float32)})["a"]


class TestSums:
    """What is counted in pieces is what one pass over everything counts."""

    @given(
        sizes=st.lists(st.sampled_from([1, 4, 20]), min_size=2, max_size=6),
        offset=st.sampled_from([0.0, -30.0, 1e4]),
        masked=st.booleans(),
    )
    def test_batches_of_any_sizes(self, sizes, offset, masked):
        x = (X[: sum(sizes)].astype(np.float64) + offset).astype(np.float32)
        mask = np.random.default_rng(0).random(x.shape) < 0.6 if masked else None
        recorder = Recorder("")
        for start, stop in itertools.pairwise([0, *np.cumsum(sizes)]):
            part = None if mask is None else mask[start:stop]
            recorder.add({"a": counted(x[start:stop], part)})
        want = reference.calibration(x, mask=mask)
        assert_calibration(finished(recorder), want, 1e-5)

    def test_batches_that_have_nothing_in_common(self):
        """Sorted data: the spread between batches is part of the spread between examples."""
        x = np.concatenate([X, X + 100, X * 5 - 300]).astype(np.float32)
        recorder = Recorder("")
        for part in np.split(x, 3):
            recorder.add({"a": counted(part)})
        found = finished(recorder)
        assert_calibration(found, reference.calibration(x), 1e-4)

    def test_constant_channels_have_no_spread(self):
        x = X.copy()
        x[..., 1] = 0.1
        x[..., 2] = 1e4 / 3
        recorder = Recorder("")
        for part in batches(x):
            recorder.add({"a": counted(part)})
        found = finished(recorder)
        for values in (found.variance, found.mean_spread, found.variance_spread):
            np.testing.assert_array_equal(np.asarray(values) == 0, [False, True, True, False])
        np.testing.assert_allclose(found.mean[1:3], [0.1, 1e4 / 3], rtol=1e-6)

    def test_channels_without_a_value(self):
        mask = np.arange(CHANNELS) != 3
        recorder = Recorder("")
        recorder.add({"a": counted(np.where(mask, X, np.nan), np.broadcast_to(mask, X.shape))})
        found = finished(recorder)
        want = reference.calibration(X)
        assert_calibration([a[:3] for a in found], [a[:3] for a in want])
        np.testing.assert_array_equal(found.variance[3], 0)


class Net(nnx.Module):
    """A layer shared by two calls, a layer in a list, dropout, and a mask that is passed."""

    def __init__(self, rngs):
        self.shared = norm()
        self.blocks = nnx.List([norm(), nnx.Linear(CHANNELS, CHANNELS, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, mask=None):
        x = jnp.sin(self.shared(x, mask=mask)) * 3
        x = self.blocks[0](self.dropout(x), mask=mask)
        return self.blocks[1](self.shared(x, mask=mask))


def arrays(model):
    """The state without calibration and random keys."""
    return nnx.state(model, nnx.Not(nnx.Any(CalibrationStat, nnx.RngState)))


def inputs_of(model, x, mask=None):
    """The inputs of the layers of `Net`, by hand and in inference."""
    view = nnx.view(model, use_running_average=True)
    first = view.shared(x)
    second = jnp.sin(first) * 3
    third = view.blocks[0](second)
    return {"shared": np.concatenate([x, third]), "blocks/0": second}


class TestNNX:
    @pytest.mark.usefixtures("mixed_dtypes")
    def test_every_layer_is_measured_in_inference_mode(self):
        model = Net(nnx.Rngs(0))
        before = jax.device_get(arrays(model))
        seen = []
        calibrated = stein_nnx.calibrate(model, batches(), on_batch=seen.append)
        assert seen == [1, 2, 3, 4]
        wanted = inputs_of(model, X)
        assert_calibration(of_layer(calibrated.shared), reference.calibration(wanted["shared"]))
        assert_calibration(
            of_layer(calibrated.blocks[0]), reference.calibration(wanted["blocks/0"])
        )
        # The given model is as it was, and the new one's own variables have its values.
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(arrays(model)), before)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(arrays(calibrated)), before)
        assert len(jax.tree.leaves(nnx.state(calibrated, CalibrationStat))) == 2 * len(ATTRIBUTES)
        assert calibrated.shared.mean is not model.shared.mean
        assert not calibrated.dropout.deterministic
        assert calibrated.shared.use_running_average is False

    @pytest.mark.usefixtures("mixed_dtypes")
    def test_masks_and_calls_of_ones_own(self):
        model = Net(nnx.Rngs(0))
        lengths = np.random.default_rng(0).integers(1, 4, 120)
        mask = (np.arange(3) < lengths[:, None]).reshape(120, 3, 1, 1)
        calibrated = stein_nnx.calibrate(
            model,
            [{"image": x, "mask": m} for x, m in zip(batches(), batches(mask), strict=True)],
            call=lambda model, batch: model(batch["image"], mask=batch["mask"]),
        )
        wanted = inputs_of(model, X)
        assert_calibration(
            of_layer(calibrated.shared),
            reference.calibration(wanted["shared"], mask=np.concatenate([mask, mask])),
        )

    @pytest.mark.usefixtures("mixed_dtypes")
    def test_calibrated_inference_is_the_rule_with_these_values(self):
        calibrated = stein_nnx.calibrate(norm(), batches())
        known = reference.calibration(X)
        x = X[:3] * 1.5 + 1
        test = nnx.view(calibrated, use_running_average=True, test_statistics="calibrated")
        y, a, b = reference.calibrated(
            x, known, calibrated.mean[...], calibrated.var[...], epsilon=1e-5
        )
        np.testing.assert_allclose(test(x), y * np.array(test.scale[...]), rtol=1e-4, atol=1e-4)
        _, sown = nnx.capture(test, stein_nnx.ShrinkageFactor)(x)
        factors = nnx.to_pure_dict(sown)
        np.testing.assert_allclose(factors["mean_factor"][0], a, rtol=1e-3)
        np.testing.assert_allclose(factors["variance_factor"][0], b, rtol=1e-3)
        streams = nnx.view(test, test_statistics="calibrated_streams")
        assert np.any(streams(x) != test(x))
        np.testing.assert_array_equal(  # other sources do not look at a calibration
            nnx.view(test, test_statistics="shrunk")(x),
            nnx.view(norm(), use_running_average=True, test_statistics="shrunk")(x),
        )

    def test_training_and_frozen_layers(self):
        calibrated = stein_nnx.calibrate(norm(test_statistics="calibrated"), [X])
        plain = norm()
        np.testing.assert_array_equal(calibrated(X), plain(X))
        np.testing.assert_array_equal(calibrated.mean[...], plain.mean[...])
        frozen = stein_nnx.freeze(calibrated)
        assert_calibration(of_layer(frozen), of_layer(calibrated), 0)
        again = nnx.view(calibrated, use_running_average=True)
        np.testing.assert_array_equal(frozen(X[:2]), again(X[:2]))

    def test_convert_takes_it_and_revert_drops_it(self):
        model = nnx.Sequential(nnx.BatchNorm(CHANNELS, rngs=nnx.Rngs(0)))
        calibrated = stein_nnx.calibrate(stein_nnx.convert(model), [X])
        both = nnx.Sequential(nnx.BatchNorm(CHANNELS, rngs=nnx.Rngs(0)), calibrated)
        kept = stein_nnx.convert(both).layers[1].layers[0]
        assert_calibration(of_layer(kept), of_layer(calibrated.layers[0]), 0)
        reverted = stein_nnx.revert(calibrated)
        assert nnx.split(reverted)[0] == nnx.split(model)[0]

    def test_a_second_calibration_takes_the_place_of_the_first(self):
        first = stein_nnx.calibrate(norm(test_statistics="calibrated"), [X])
        second = stein_nnx.calibrate(first, [X * 2])
        assert_calibration(of_layer(first), reference.calibration(X))
        assert_calibration(of_layer(second), reference.calibration(X * 2))
        assert nnx.split(first)[0] == nnx.split(second)[0]

    def test_an_uncalibrated_layer_has_flaxs_state(self):
        ours, theirs = norm(), nnx.BatchNorm(CHANNELS, rngs=nnx.Rngs(0))
        assert (
            nnx.to_flat_state(nnx.state(ours)).paths == nnx.to_flat_state(nnx.state(theirs)).paths
        )
        calibrated = stein_nnx.calibrate(ours, [X])
        nnx.update(calibrated, nnx.state(theirs))  # as a checkpoint of Flax's layer loads
        np.testing.assert_array_equal(calibrated.mean[...], 0)
        assert_calibration(of_layer(calibrated), reference.calibration(X))

    def test_batch_stat_filters_take_it_along(self):
        """Splits of a model by Flax's kinds of variables stay exhaustive."""
        calibrated = stein_nnx.calibrate(norm(), [X])
        graph, params, stats = nnx.split(calibrated, nnx.Param, nnx.BatchStat)
        assert len(jax.tree.leaves(stats)) == 6

        @jax.jit
        def run(params, stats, x):
            model = nnx.merge(graph, params, stats)
            return nnx.view(model, use_running_average=True, test_statistics="calibrated")(x)

        view = nnx.view(calibrated, use_running_average=True, test_statistics="calibrated")
        np.testing.assert_allclose(run(params, stats, X[:2]), view(X[:2]), rtol=1e-5, atol=1e-5)

    def test_a_round_trip_through_orbax(self, tmp_path):
        calibrated = stein_nnx.calibrate(norm(), [X])
        state = nnx.state(calibrated)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, state))
        fresh = norm()
        nnx.update(fresh, restored)  # a layer that was not calibrated makes room for it
        assert_calibration(of_layer(fresh), of_layer(calibrated), 0)
        view = {"use_running_average": True, "test_statistics": "calibrated"}
        np.testing.assert_array_equal(
            nnx.view(fresh, **view)(X[:2]), nnx.view(calibrated, **view)(X[:2])
        )

    def test_several_feature_axes(self):
        layer = SteinBatchNorm(3 * CHANNELS, axis=(1, 3), rngs=nnx.Rngs(0))
        calibrated = stein_nnx.calibrate(layer, batches())
        want = reference.calibration(X, axis=(1, 3))
        assert_calibration(of_layer(calibrated), [a.reshape(-1) for a in want])
        view = nnx.view(calibrated, use_running_average=True, test_statistics="calibrated")
        assert view(X[:2]).shape == (2, *SIZE)

    def test_a_layer_with_a_small_dtype_and_one_that_is_told_to_train(self):
        class Told(nnx.Module):
            def __init__(self):
                self.norm = norm(dtype=jnp.bfloat16)

            def __call__(self, x):
                return self.norm(x, use_running_average=False)

        calibrated = stein_nnx.calibrate(Told(), batches())
        assert calibrated.norm.calibrated_mean.dtype == jnp.float32
        assert_calibration(of_layer(calibrated.norm), reference.calibration(X))


class Stack(nnx.Module):
    """Three layers in one, whose states are stacked."""

    def __init__(self, how, axes):
        self.how, self.axes = how, axes

        @nnx.vmap(in_axes=0, out_axes=axes, axis_size=3)
        def make(offset):
            layer = SteinBatchNorm(CHANNELS, rngs=nnx.Rngs(0))
            layer.mean[...] = layer.mean[...] + offset
            return layer

        self.norm = make(jnp.arange(3.0))

    def __call__(self, x):
        if self.how == "scan":
            run = nnx.scan(
                lambda x, layer: jnp.sin(layer(x)) * 2,
                in_axes=(nnx.Carry, self.axes),
                out_axes=nnx.Carry,
            )
            return run(x, self.norm)
        run = nnx.vmap(lambda x, layer: layer(x), in_axes=(None, self.axes), out_axes=0)
        return run(x, self.norm)


class TestStacksOfNNX:
    @pytest.mark.parametrize("how", ["scan", "vmap"])
    @pytest.mark.parametrize("axes", [0, nnx.StateAxes({nnx.Param: 0, nnx.BatchStat: 1, ...: 0})])
    def test_each_layer_has_its_own(self, how, axes):
        model = Stack(how, axes)
        calibrated = stein_nnx.calibrate(model, batches())
        x, axis = X, 0 if axes == 0 else 1
        for i in range(3):
            found = [np.take(np.asarray(a), i, axis) for a in of_layer(calibrated.norm)]
            assert_calibration(found, reference.calibration(x))
            if how == "scan":
                x = np.sin((x - i) / np.sqrt(1 + 1e-5)) * 2
        view = nnx.view(calibrated, use_running_average=True, test_statistics="calibrated")
        assert np.all(np.isfinite(view(X[:2])))


class TestDevices:
    @pytest.fixture(autouse=True)
    def _needs_devices(self):
        if jax.device_count() < 4:
            pytest.skip(f"needs 4 devices, got {jax.device_count()}")

    @pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
    def test_sharded_inputs(self, axis_type):
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(axis_type,) * 2)
        spec = P("data", None, None, "model")
        with jax.set_mesh(mesh):
            parts = [jax.device_put(x, NamedSharding(mesh, spec)) for x in batches(sizes=(80, 40))]
            calibrated = stein_nnx.calibrate(norm(), parts)
            test = nnx.view(calibrated, use_running_average=True, test_statistics="calibrated")
            assert np.all(np.isfinite(nnx.jit(lambda m, x: m(x))(test, parts[1])))
            net = linen.SteinBatchNorm(use_running_average=True)
            variables = net.init(jax.random.key(0), parts[0])
            variables = linen.calibrate(net.apply, variables, parts)
        assert_calibration(of_layer(calibrated), reference.calibration(X))
        assert_calibration(of_collection(variables["calibration"]), reference.calibration(X))

    def test_layers_with_an_axis_name(self, mesh):
        """Inside shard_map over that axis, and outside of any."""
        layer = norm(axis_name="devices")
        outside = stein_nnx.calibrate(layer, [X])
        assert_calibration(of_layer(outside), reference.calibration(X))
        state = nnx.StateSharding({...: P()})

        def call(model, x):
            run = nnx.shard_map(
                lambda model, x: model(x),
                mesh=mesh,
                in_specs=(state, P("devices")),
                out_specs=P("devices"),
            )
            return run(model, x)

        inside = stein_nnx.calibrate(layer, batches(sizes=(80, 40)), call=call)
        assert_calibration(of_layer(inside), reference.calibration(X))

    def test_a_layer_that_is_bound_to_no_device_stays_so(self, mesh):
        """Calibrated on one device, it answers for inputs that lie on several."""
        layer = stein_nnx.calibrate(norm(), [jnp.asarray(X)])
        test = nnx.view(layer, use_running_average=True, test_statistics="calibrated")
        x = jax.device_put(X[:40], NamedSharding(mesh, P("devices")))
        together = nnx.jit(lambda m, x: m(x))(test, x)
        assert len(together.devices()) == 4
        np.testing.assert_allclose(together, test(jnp.asarray(X[:40])), rtol=1e-5, atol=1e-5)

    def test_they_stay_where_the_running_statistics_are(self, mesh):
        layer, sharding = norm(), NamedSharding(mesh, P("devices"))
        layer.mean[...] = jax.device_put(layer.mean[...], sharding)
        calibrated = stein_nnx.calibrate(layer, [X])
        for name in ATTRIBUTES:
            assert getattr(calibrated, name)[...].sharding == sharding


class LinenNet(nn.Module):
    """A layer called twice, a layer inside another module, and a plain one of Flax's."""

    statistics: str = "running"

    @nn.compact
    def __call__(self, x, train=True, mask=None):
        shared = linen.SteinBatchNorm(
            use_running_average=not train, test_statistics=self.statistics, name="shared"
        )
        x = jnp.sin(shared(x, mask=mask)) * 3
        x = LinenInner(self.statistics)(x, train)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return shared(x, mask=mask)


class LinenInner(nn.Module):
    statistics: str = "running"

    @nn.compact
    def __call__(self, x, train):
        layer = linen.BatchNorm(
            use_running_average=not train, test_statistics=self.statistics, momentum=0.5
        )
        return nn.Dropout(0.5, deterministic=not train)(jnp.sin(layer(x)))


@functools.cache
def linen_variables():
    made = LinenNet().init(jax.random.key(0), X[:2], train=False)
    return jax.tree.map(lambda a: a + 0.3, made)


class TestLinen:
    def test_every_layer_is_measured_in_inference_mode(self):
        variables, seen = linen_variables(), []
        calibrated = linen.calibrate(
            LinenNet(), variables, batches(), train=False, on_batch=seen.append
        )
        assert seen == [1, 2, 3, 4]
        assert sorted(calibrated) == ["batch_stats", "calibration", "params"]
        assert sorted(variables) == ["batch_stats", "params"]
        found = calibrated["calibration"]
        assert sorted(found) == ["LinenInner_0", "shared"]

        def infer(x, name):
            mean, var = (np.float64(variables["batch_stats"][name][k]) for k in ("mean", "var"))
            scale, bias = (np.float64(variables["params"][name][k]) for k in ("scale", "bias"))
            return reference.normalise(x, mean, var, scale=scale, bias=bias)

        inner = np.sin(infer(X, "shared")) * 3
        held = {k: v["LinenInner_0"]["BatchNorm_0"] for k, v in variables.items()}
        after = np.sin(
            reference.normalise(
                inner,
                held["batch_stats"]["mean"],
                held["batch_stats"]["var"],
                scale=held["params"]["scale"],
                bias=held["params"]["bias"],
            )
        )
        last = infer(after, "BatchNorm_0")
        assert_calibration(
            of_collection(found["shared"]), reference.calibration(np.concatenate([X, last]))
        )
        assert_calibration(
            of_collection(found["LinenInner_0"]["BatchNorm_0"]), reference.calibration(inner)
        )

    def test_calibrated_inference_is_the_rule_with_these_values(self):
        net = linen.SteinBatchNorm(use_running_average=True, test_statistics="calibrated")
        variables = net.init(jax.random.key(0), X)  # needs no calibration yet
        assert sorted(variables) == ["batch_stats", "params"]
        variables = linen.calibrate(net.apply, variables, batches())
        x = X[:3] * 1.5 + 1
        y, a, b = reference.calibrated(
            x, reference.calibration(X), np.zeros(4), np.ones(4), epsilon=1e-5
        )
        got, sown = net.apply(variables, x, mutable=["intermediates"])
        np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)
        factors = sown["intermediates"]
        np.testing.assert_allclose(factors["mean_factor"][0], a, rtol=1e-3)
        np.testing.assert_allclose(factors["variance_factor"][0], b, rtol=1e-3)
        training = net.clone(use_running_average=False)
        _, updated = training.apply(variables, x, mutable=["batch_stats"])
        assert sorted(updated) == ["batch_stats"]

    def test_masks_and_functions_of_ones_own(self):
        lengths = np.random.default_rng(0).integers(1, 4, 120)
        mask = (np.arange(3) < lengths[:, None]).reshape(120, 3, 1, 1)
        net = linen.SteinBatchNorm(use_running_average=True)

        @functools.partial(jax.jit, static_argnames="mutable")
        def apply(variables, batch, mutable=()):
            return net.apply(variables, batch[0], mask=batch[1], mutable=list(mutable))

        variables = net.init(jax.random.key(0), X)
        calibrated = linen.calibrate(
            lambda variables, batch, mutable: apply(variables, batch, mutable=tuple(mutable)),
            variables,
            list(zip(batches(), batches(mask), strict=True)),
        )
        assert_calibration(
            of_collection(calibrated["calibration"]), reference.calibration(X, mask=mask)
        )
        again = linen.calibrate(net.apply, calibrated, [X * 2])
        assert_calibration(of_collection(again["calibration"]), reference.calibration(X * 2))

    def test_a_round_trip_through_orbax(self, tmp_path):
        variables = linen.calibrate(LinenNet(), linen_variables(), [X], train=False)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", variables)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(
                tmp_path / "state", jax.tree.map(jnp.zeros_like, variables)
            )
        net = LinenNet("calibrated")
        np.testing.assert_array_equal(
            net.apply(restored, X[:2], train=False), net.apply(variables, X[:2], train=False)
        )

    def test_flax_modules_read_what_is_calibrated(self):
        net = linen.SteinBatchNorm(use_running_average=True)
        variables = linen.calibrate(net, net.init(jax.random.key(0), X), [X])
        y = nn.BatchNorm(use_running_average=True).apply(variables, X[:2])
        np.testing.assert_allclose(net.apply(variables, X[:2]), y, rtol=1e-5, atol=1e-5)


def linen_stack(how, collections):
    axes = dict.fromkeys(collections, 0)

    class Block(nn.Module):
        statistics: str = "running"

        @nn.compact
        def __call__(self, x, _=None):
            layer = linen.SteinBatchNorm(
                use_running_average=True, test_statistics=self.statistics, name="norm"
            )
            y = jnp.sin(layer(x)) * 2
            return (y, None) if how == "scan" else y

    if how == "scan":
        return nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
    return nn.vmap(
        Block,
        variable_axes=axes,
        split_rngs={"params": True},
        in_axes=None,
        axis_size=3,
    )


class TestStacksOfLinen:
    @pytest.mark.parametrize("how", ["scan", "vmap"])
    def test_each_layer_has_its_own(self, how):
        stack = linen_stack(how, ("params", "batch_stats", "calibration"))
        variables = stack().init(jax.random.key(0), X[:2])
        found = linen.calibrate(stack().apply, variables, batches())
        x = X
        for i in range(3):
            layer = [a[i] for a in of_collection(found["calibration"]["norm"])]
            assert_calibration(layer, reference.calibration(x))
            if how == "scan":
                x = np.sin(x / np.sqrt(1 + 1e-5)) * 2
        y = stack(statistics="calibrated").apply(found, X[:2])
        assert np.all(np.isfinite(jax.tree.leaves(y)[0]))

    @pytest.mark.parametrize("how", ["scan", "vmap"])
    def test_the_error_says_what_to_add(self, how):
        stack = linen_stack(how, ("params", "batch_stats"))
        variables = stack().init(jax.random.key(0), X[:2])
        hint = "variable_axes={'params': 0, 'batch_stats': 0, 'calibration': 0}"
        with pytest.raises(ValueError, match=hint):
            linen.calibrate(stack().apply, variables, [X])
        with pytest.raises(ValueError, match=hint):
            stack(statistics="calibrated").apply(variables, X[:2])

    def test_remat_and_jit(self):
        class Lifted(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.remat(linen.SteinBatchNorm)(use_running_average=True, name="a")(x)
                return nn.jit(linen.SteinBatchNorm)(use_running_average=True, name="b")(x)

        variables = Lifted().init(jax.random.key(0), X)
        found = linen.calibrate(Lifted(), variables, batches())["calibration"]
        assert_calibration(of_collection(found["a"]), reference.calibration(X))
        want = reference.calibration(X / np.sqrt(1 + 1e-5))
        assert_calibration(of_collection(found["b"]), want)


class Half(nnx.Module):
    def __init__(self):
        self.used, self.unused = norm(), norm()

    def __call__(self, x):
        return self.used(x)


class LinenHalf(nn.Module):
    @nn.compact
    def __call__(self, x, both):
        x = linen.SteinBatchNorm(use_running_average=True, name="used")(x)
        if both:
            x = linen.SteinBatchNorm(use_running_average=True, name="unused")(x)
        return x


def calibrate_linen(x=X, **options):
    net = linen.SteinBatchNorm(use_running_average=True, **options)
    variables = net.init(jax.random.key(0), X)
    return linen.calibrate(net, variables, x)


def calibrate_half_of_linen():
    variables = LinenHalf().init(jax.random.key(0), X, both=True)
    return linen.calibrate(LinenHalf(), variables, [X], both=False)


NOT_FINITE = [X[:60], np.where(np.arange(CHANNELS) == 1, np.inf, X)]


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: stein_nnx.calibrate(X, [X]), TypeError, "must be a flax.nnx.Module; got nd"),
            (
                lambda: stein_nnx.calibrate(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), [X]),
                ValueError,
                r"BatchNorm holds no SteinBatchNorm to calibrate; convert\(model\)",
            ),
            (lambda: stein_nnx.calibrate(Half(), [X]), ValueError, "no batch reached 'unused'"),
            (lambda: stein_nnx.calibrate(norm(), []), ValueError, "batches is empty"),
            (lambda: stein_nnx.calibrate(norm(), [X[:0]]), ValueError, "no batch reached"),
            (lambda: stein_nnx.calibrate(norm(), [X[:1]]), ValueError, "at least two examples"),
            (
                lambda: stein_nnx.calibrate(nnx.Sequential(norm()), NOT_FINITE),
                ValueError,
                "inputs of 'layers/0' in batch 2 are not finite",
            ),
            (lambda: counted(X * 1j), TypeError, "real inputs; got dtype complex64"),
            (calibrate_half_of_linen, ValueError, "no batch reached 'unused'"),
            (lambda: calibrate_linen([]), ValueError, "batches is empty"),
            (lambda: calibrate_linen([X[:1]]), ValueError, "at least two examples"),
            (lambda: calibrate_linen(NOT_FINITE), ValueError, "the model in batch 2 are not"),
            (
                lambda: linen.calibrate(nn.Dense(3), nn.Dense(3).init(jax.random.key(0), X), [X]),
                ValueError,
                "calls no SteinBatchNorm",
            ),
        ],
    )
    def test_what_cannot_be_calibrated(self, call, error, message):
        with pytest.raises(error, match=message):
            call()

    @pytest.mark.parametrize("kind", ["calibrated", "calibrated_streams"])
    def test_layers_that_are_not_calibrated(self, kind):
        layer = norm(test_statistics=kind)
        assert layer(X).shape == X.shape  # training does not need it
        with pytest.raises(ValueError, match=r"model = steinnorm.nnx.calibrate\(model"):
            nnx.view(layer, use_running_average=True)(X)
        net = linen.SteinBatchNorm(use_running_average=True, test_statistics=kind)
        with pytest.raises(ValueError, match=r"variables = steinnorm.linen.calibrate\(net.apply"):
            net.apply(net.init(jax.random.key(0), X), X)

    def test_few_examples_warn(self):
        with pytest.warns(UserWarning, match=r"from 99 examples is rough: below 100 .* 14 %"):
            stein_nnx.calibrate(norm(), [X[:99]])
        with pytest.warns(UserWarning, match="from 50 examples"):
            calibrate_linen([X[:50]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stein_nnx.calibrate(norm(), [X[:60], X[60:100]])


def test_values_by_hand_are_those_of_the_pure_function():
    layer = stein_nnx.calibrate(norm(), [X])
    view = nnx.view(layer, use_running_average=True, test_statistics="calibrated")
    known = Calibration(*of_layer(layer))
    got = stein_batch_norm(
        X[:2],
        layer.scale[...],
        layer.bias[...],
        RunningStatistics(layer.mean[...], layer.var[...]),
        use_running_average=True,
        test_statistics="calibrated",
        calibration=known,
    )
    np.testing.assert_array_equal(view(X[:2]), got.y)
