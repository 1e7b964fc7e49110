"""The pass that calibrates Linen models: shared, masked, lifted and stacked layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn

from steinnorm import _linen_pass, linen
from tests import reference
from tests.calibrations import (
    HALVES,
    X,
    assert_calibration,
    batches,
    of_collection,
)

pytestmark = pytest.mark.filterwarnings("ignore:a calibration from:UserWarning")


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
        variables = linen.calibrate(net.apply, variables, batches(sizes=HALVES))
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
        train: bool = False

        @nn.compact
        def __call__(self, x, _=None):
            layer = linen.SteinBatchNorm(
                use_running_average=not self.train, test_statistics=self.statistics, name="norm"
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
        found = linen.calibrate(stack().apply, variables, batches(sizes=HALVES))
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
        found = linen.calibrate(Lifted(), variables, batches(sizes=HALVES))["calibration"]
        assert_calibration(of_collection(found["a"]), reference.calibration(X))
        want = reference.calibration(X / np.sqrt(1 + 1e-5))
        assert_calibration(of_collection(found["b"]), want)


class TestOrdinaryCalls:
    """That the collection is mutable is no reason to count: only `calibrate` is."""

    @pytest.fixture(params=["contexts of JAX", "none, as in JAX 0.6.2"])
    def contexts(self, request, monkeypatch):
        if request.param != "contexts of JAX":
            monkeypatch.setattr(_linen_pass, "_in_jax", None)
        elif _linen_pass._in_jax is None:
            pytest.skip("this JAX has none")

    def test_a_calibrated_model_trains_with_all_its_state_mutable(self, contexts):
        net = linen.SteinBatchNorm()
        plain = net.init(jax.random.key(0), X, use_running_average=False)
        calibrated = linen.calibrate(net, plain, [X], use_running_average=True)
        x = X[:8] * 2 + 1
        want, moved = net.apply(plain, x, use_running_average=False, mutable=["batch_stats"])
        state = [name for name in calibrated if name != "params"]
        got, updated = net.apply(calibrated, x, use_running_average=False, mutable=state)
        np.testing.assert_array_equal(got, want)
        jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], moved["batch_stats"])
        assert sorted(updated["calibration"]) == sorted(calibrated["calibration"])
        test = net.clone(use_running_average=True, test_statistics="calibrated")
        got, _ = test.apply(calibrated, x, mutable=state)
        np.testing.assert_array_equal(got, test.apply(calibrated, x))

    def test_a_function_traced_outside_a_pass_is_not_used_inside_nor_the_other_way_round(self):
        net = linen.SteinBatchNorm(use_running_average=True)
        variables = net.init(jax.random.key(0), X)

        @jax.jit
        def apply(variables, batch):
            return net.apply(variables, batch, mutable=["calibration"])

        if _linen_pass._in_jax is not None:  # else nothing tells these two apart
            assert apply(variables, X)[1] == {}
        calibrated = linen.calibrate(lambda v, batch, mutable: apply(v, batch), variables, [X])
        assert_calibration(of_collection(calibrated["calibration"]), reference.calibration(X))
        if _linen_pass._in_jax is not None:
            assert apply(variables, X)[1] == {}

    @pytest.mark.parametrize("how", ["scan", "vmap"])
    @pytest.mark.parametrize("mutable", [True, nn.DenyList("params")], ids=["all", "all but one"])
    def test_stacks_with_everything_mutable_neither_count_nor_sow(self, how, mutable):
        names = ("params", "batch_stats", "calibration", "intermediates")
        inner = linen_stack(how, names)

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return inner(train=True, name="stack")(x, *([None] if how == "scan" else []))

        stack = Net()
        variables = stack.init(jax.random.key(0), X[:2])
        want, moved = stack.apply(variables, X[:8] + 1, mutable=["batch_stats"])
        got, updated = stack.apply(variables, X[:8] + 1, mutable=mutable)
        np.testing.assert_array_equal(jax.tree.leaves(got)[0], jax.tree.leaves(want)[0])
        jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], moved["batch_stats"])
        assert set(updated) <= {"params", "batch_stats"}
        _, sown = stack.apply(variables, X[:8], mutable=["batch_stats", "intermediates"])
        assert sorted(sown["intermediates"]["stack"]["norm"]) == ["mean_factor", "variance_factor"]


def test_a_carried_collection_counts_all_steps():
    carried = ["batch_stats", "calibration"]

    class Cell(nn.Module):
        statistics: str = "running"

        @nn.compact
        def __call__(self, carry, x):
            norm = linen.SteinBatchNorm(
                use_running_average=True, test_statistics=self.statistics, name="norm"
            )
            return carry, norm(x)

    class Steps(nn.Module):
        statistics: str = "running"

        @nn.compact
        def __call__(self, xs):
            cell = Cell(self.statistics, name="cell")
            if self.is_initializing():
                return cell(0.0, xs[:, 0])[1]
            scan = nn.scan(
                lambda cell, carry, x: cell(carry, x),
                variable_broadcast="params",
                variable_carry=carried,
                split_rngs={"params": False},
                in_axes=1,
            )
            return scan(cell, 0.0, xs)[1]

    variables = Steps().init(jax.random.key(0), X)
    found = linen.calibrate(Steps(), variables, batches(sizes=HALVES))
    steps = np.concatenate([X[:, 0], X[:, 1], X[:, 2]])
    held = found["calibration"]["cell"]["norm"]
    assert_calibration(of_collection(held), reference.calibration(steps))
    y, updated = Steps("calibrated").apply(found, X[:2], mutable=carried)
    assert np.all(np.isfinite(y))
    jax.tree.map(np.testing.assert_array_equal, updated["calibration"], found["calibration"])
