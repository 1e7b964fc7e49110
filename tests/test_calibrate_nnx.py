"""The pass that calibrates NNX models: masks, stacked layers, devices, checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from steinnorm import linen
from steinnorm import nnx as stein_nnx
from steinnorm.nnx import CalibrationStat, SteinBatchNorm
from tests import reference
from tests.calibrations import (
    ATTRIBUTES,
    CHANNELS,
    HALVES,
    SIZE,
    X,
    assert_calibration,
    batches,
    norm,
    of_collection,
    of_layer,
)

pytestmark = pytest.mark.filterwarnings("ignore:a calibration from:UserWarning")


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
        calibrated = stein_nnx.calibrate(norm(), batches(sizes=HALVES))
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
        calibrated = stein_nnx.calibrate(layer, batches(sizes=HALVES))
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

        calibrated = stein_nnx.calibrate(Told(), batches(sizes=HALVES))
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
        calibrated = stein_nnx.calibrate(model, batches(sizes=HALVES))
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
