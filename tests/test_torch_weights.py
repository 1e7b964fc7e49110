"""PyTorch's BatchNorm in and out, on files that PyTorch wrote (data/make_torch_batch_norm.py)."""

import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from steinnorm import linen as stein_linen
from steinnorm import nnx as stein_nnx
from steinnorm.torch_weights import (
    batch_norms,
    from_torch,
    load_torch,
    momentum_from_torch,
    momentum_to_torch,
    to_torch,
)

DATA = pathlib.Path(__file__).parent / "data"
LEARNING_RATE = 0.5  # of the script that wrote the data
# The arguments of the layers in PyTorch, in the names of Flax, and the values per channel.
NORMS = {
    "bn1": ({}, 0.1, 432),
    "plain": ({"use_scale": False, "use_bias": False}, 0.1, 48),
    "no_bias": ({"use_bias": False, "epsilon": 1e-3}, 0.3, 12),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
pytestmark = pytest.mark.usefixtures("mixed_dtypes")  # Flax's own layers mix dtypes
each_norm = pytest.mark.parametrize("name", NORMS)


@pytest.fixture(scope="module")
def file():
    with np.load(DATA / "torch_batch_norm.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def before(file):
    return {k.removeprefix("before/"): v for k, v in file.items() if k.startswith("before/")}


@pytest.fixture
def one():
    """A layer of PyTorch alone, three channels."""
    return {
        "weight": np.array([1.0, 2.0, 3.0], np.float32),
        "bias": np.array([0.5, -0.5, 0.0], np.float32),
        "running_mean": np.array([0.1, 0.2, 0.3], np.float32),
        "running_var": np.array([1.0, 0.1, 7.0], np.float32),
        "num_batches_tracked": np.array(7, np.int64),
    }


def last(x):
    """Moves the channels from PyTorch's axis 1 to the last one."""
    return jnp.asarray(np.moveaxis(x, 1, -1))


def nnx_layer(name, kind=stein_nnx.SteinBatchNorm, **more):
    settings, momentum, _ = NORMS[name]
    channels = {"bn1": 4}.get(name, 3)
    return kind(
        channels, momentum=momentum_from_torch(momentum), rngs=nnx.Rngs(0), **settings, **more
    )


def entries(state_dict, prefix):
    return {k: v for k, v in state_dict.items() if k.startswith(prefix + ".")}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype
        np.testing.assert_array_equal(value, right[key], err_msg=key)


class TestAgainstPyTorch:
    """The numbers of PyTorch, from the file."""

    def test_batch_norms_are_found_in_order(self, before):
        assert batch_norms(before) == ["bn1", "plain", "no_bias"]
        assert batch_norms({"running_mean": 0, "running_var": 0}) == [""]

    @each_norm
    @pytest.mark.parametrize("kind", [stein_linen.SteinBatchNorm, nn.BatchNorm])
    def test_eval_in_linen(self, file, before, name, kind):
        layer = kind(use_running_average=True, **NORMS[name][0])
        y = layer.apply(from_torch(before, name), last(file[f"{name}/eval_x"]))
        np.testing.assert_allclose(y, last(file[f"{name}/eval_y"]), **CLOSE)

    @each_norm
    @pytest.mark.parametrize("kind", [stein_nnx.SteinBatchNorm, nnx.BatchNorm])
    def test_eval_in_nnx(self, file, before, name, kind):
        layer = nnx_layer(name, kind)
        load_torch(layer, before, name)
        layer.eval()
        y = layer(last(file[f"{name}/eval_x"]))
        np.testing.assert_allclose(y, last(file[f"{name}/eval_y"]), **CLOSE)

    def test_eval_with_channels_on_axis_1(self, file, before):
        layer = stein_linen.SteinBatchNorm(use_running_average=True, axis=1)
        y = layer.apply(from_torch(before, "bn1"), jnp.asarray(file["bn1/eval_x"]))
        np.testing.assert_allclose(y, file["bn1/eval_y"], **CLOSE)

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_without_tracked_statistics_the_test_batch_is_used(self, file, before, mode):
        variables = from_torch(before, "untracked")
        assert list(variables) == ["params"]
        layer = stein_nnx.SteinBatchNorm(
            3, shrinkage="none", test_statistics="batch", rngs=nnx.Rngs(0)
        )
        load_torch(layer, before, "untracked")
        layer.set_attributes(use_running_average=mode == "eval")
        y = layer(last(file[f"untracked/{mode}_x"]))
        np.testing.assert_allclose(y, last(file[f"untracked/{mode}_y"]), **CLOSE)

    def test_untracked_in_linen_no_running_statistics_are_asked_for(self, file, before):
        variables = from_torch(before, "untracked")
        assert sorted(variables) == ["params"]
        layer = stein_linen.SteinBatchNorm(
            use_running_average=True, shrinkage="none", test_statistics="batch"
        )
        y = layer.apply(variables, last(file["untracked/eval_x"]))
        np.testing.assert_allclose(y, last(file["untracked/eval_y"]), **CLOSE)
        for needs in ({"test_statistics": "running"}, {"shrinkage": "toward_running"}):
            with pytest.raises(flax.errors.ScopeCollectionNotFound):
                layer.clone(**needs).apply(variables, last(file["untracked/eval_x"]))

    @each_norm
    def test_a_training_step_exports_the_next_running_statistics(self, file, before, name):
        count = NORMS[name][2]
        layer = nnx_layer(name, shrinkage="none")
        load_torch(layer, before, name, count=count)
        y = layer(last(file[f"{name}/train_x"]))
        np.testing.assert_allclose(y, last(file[f"{name}/train_y"]), **CLOSE)
        exported = to_torch(layer, name, count=count, num_batches_tracked=6)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            after = file[f"after/{name}.{key}"]
            np.testing.assert_allclose(exported[f"{name}.{key}"], after, **CLOSE)

    def test_without_count_only_the_new_share_of_the_variance_differs(self, file, before):
        layer = nnx_layer("no_bias", shrinkage="none")
        load_torch(layer, before, "no_bias")
        layer(last(file["no_bias/train_x"]))
        old, after = (file[f"{s}/no_bias.running_var"] for s in ("before", "after"))
        new = (after - 0.7 * old) * 11 / 12  # biased
        np.testing.assert_allclose(layer.var[...], 0.7 * old + new, **CLOSE)

    @each_norm
    def test_gradients_give_the_next_weights(self, file, before, name):
        layer = nnx_layer(name, shrinkage="none")
        load_torch(layer, before, name)
        x, dy = (last(file[f"{name}/train_{part}"]) for part in ("x", "dy"))
        gradients = nnx.grad(lambda layer: jnp.sum(layer(x) * dy))(layer)
        for flax_name, torch_name in (("scale", "weight"), ("bias", "bias")):
            after = file.get(f"after/{name}.{torch_name}")
            assert (after is None) == (getattr(layer, flax_name) is None)
            if after is not None:
                step = LEARNING_RATE * getattr(gradients, flax_name)[...]
                np.testing.assert_allclose(getattr(layer, flax_name)[...] - step, after, **CLOSE)


class TestThereAndBack:
    """Nothing is lost, nothing is shared."""

    @pytest.mark.parametrize("name", [*NORMS, "untracked"])
    def test_round_trip_is_exact(self, before, name):
        tracked = int(before.get(f"{name}.num_batches_tracked", 0))
        back = to_torch(from_torch(before, name), name, num_batches_tracked=tracked)
        assert_same(back, entries(before, name))

    @each_norm
    def test_round_trip_through_nnx_is_exact(self, before, name):
        layer = nnx_layer(name)
        load_torch(layer, before, name + ".")  # the last dot may be given
        assert_same(to_torch(layer, name, num_batches_tracked=5), entries(before, name))

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_dtypes_stay(self, x64, one, dtype):
        state = {k: v.astype(dtype) if v.ndim else v for k, v in one.items()}
        assert_same(to_torch(from_torch(state), num_batches_tracked=7), state)

    def test_bfloat16_becomes_float32_with_the_same_values(self, one):
        state = {k: jnp.asarray(v, jnp.bfloat16) for k, v in one.items() if v.ndim}
        variables = from_torch(state)
        exported = to_torch(
            {"batch_stats": {"mean": state["running_mean"], "var": state["weight"]}}
        )
        assert exported["running_var"].dtype == np.float32
        np.testing.assert_array_equal(exported["running_var"], one["weight"])
        for value in jax.tree.leaves(variables):
            assert value.dtype == jnp.float32
        rounded = state["running_var"].astype(jnp.float32)
        np.testing.assert_array_equal(variables["batch_stats"]["var"], rounded)

    def test_a_layer_keeps_its_dtypes(self, one):
        layer = nnx.BatchNorm(3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        load_torch(layer, {k: v.astype(np.float64) for k, v in one.items()})
        assert layer.scale[...].dtype == jnp.bfloat16
        assert layer.var[...].dtype == jnp.float32

    def test_tensors_are_taken_without_torch(self, one):
        class Tensor:
            """What the module knows of a tensor on another device that needs gradients."""

            def __init__(self, array, dtype, ready=False):
                self.array, self.dtype, self.ready = array, dtype, ready

            def detach(self):
                return self

            def cpu(self):
                return Tensor(self.array, self.dtype, ready=True)

            def float(self):
                assert self.ready
                return Tensor(self.array, "torch.float32", ready=True)

            def __array__(self, dtype=None, copy=None):
                assert self.ready
                assert str(self.dtype) == "torch.float32", "NumPy has no bfloat16"
                return self.array

        for dtype in ("torch.float32", "torch.bfloat16"):
            got = from_torch({k: Tensor(v, dtype) for k, v in one.items()})
            np.testing.assert_array_equal(got["params"]["scale"], one["weight"])

    def test_no_memory_is_shared(self, one):
        variables = from_torch(one)
        one["weight"][:] = 9
        np.testing.assert_array_equal(variables["params"]["scale"], [1, 2, 3])
        stats = {"mean": np.zeros(3), "var": np.ones(3)}
        to_torch({"batch_stats": stats})["running_mean"][:] = 9  # writable, as torch wants it
        np.testing.assert_array_equal(stats["mean"], np.zeros(3))

    def test_count_converts_and_converts_back(self, one):
        variables = from_torch(one, count=5)
        np.testing.assert_allclose(variables["batch_stats"]["var"], one["running_var"] * 0.8)
        np.testing.assert_array_equal(variables["batch_stats"]["mean"], one["running_mean"])
        back = to_torch(variables, count=5)
        np.testing.assert_allclose(back["running_var"], one["running_var"], rtol=2e-7)

    @pytest.mark.parametrize("momentum", [0, 0.001, 0.01, 0.1, 0.3, 0.9, 0.99, 1])
    def test_momentum(self, momentum):
        assert momentum_to_torch(momentum_from_torch(momentum)) == momentum
        assert momentum_from_torch(momentum) == pytest.approx(1 - momentum, abs=1e-15)


class TestErrors:
    """Each says what was expected, what came and what to do."""

    def test_the_layers_that_are_there_are_listed(self, before):
        with pytest.raises(ValueError, match=r"one of bn9\.weight, .* got none .*'bn1', 'plain'"):
            from_torch(before, "bn9")
        with pytest.raises(ValueError, match=r"there are: 'bn1'"):
            from_torch(before)

    def test_a_long_list_is_cut(self):
        many = {f"bn{i}.running_mean": np.ones(2) for i in range(155)}
        with pytest.raises(ValueError, match=r"'bn9', \.\.\. \(see batch_norms\)"):
            from_torch(many, "bn")

    def test_a_nested_checkpoint_is_recognised(self, before):
        with pytest.raises(ValueError, match=r"'epoch', 'state_dict'.*checkpoint\['state_dict'\]"):
            from_torch({"epoch": 3, "state_dict": before}, "bn1")

    def test_no_mapping(self):
        with pytest.raises(TypeError, match=r"mapping .* torch\.load.* got str"):
            from_torch("model.pt", "bn1")

    @pytest.mark.parametrize(
        ("gone", "there"),
        [("running_var", "running_mean"), ("running_mean", "running_var"), ("weight", "bias")],
    )
    def test_half_a_layer(self, one, gone, there):
        del one[gone]
        with pytest.raises(ValueError, match=f"{gone} is missing, though {there} is there"):
            from_torch(one)

    def test_shapes(self, one, before):
        one["bias"] = np.zeros(2, np.float32)
        with pytest.raises(ValueError, match=r"weight \(3,\), bias \(2,\)"):
            from_torch(one)
        with pytest.raises(ValueError, match=r"conv1\.weight \(4, 2, 3, 3\).*there are: 'bn1'"):
            from_torch(before, "conv1")

    @pytest.mark.parametrize("value", [np.ones(3, np.int32), np.ones(3, np.complex64), "x"])
    def test_dtypes(self, one, value):
        one["weight"] = value
        with pytest.raises(TypeError, match="weight must be an array of float16"):
            from_torch(one)

    @pytest.mark.parametrize("count", [1, 0, -3, float("nan"), float("inf")])
    def test_count(self, one, count):
        with pytest.raises(ValueError, match=f"count must be more than 1.*got {count}"):
            from_torch(one, count=count)
        with pytest.raises(ValueError, match="count must be more than 1"):
            to_torch(from_torch(one), count=count)

    def test_to_torch_of_a_whole_model(self, one):
        model = {c: {"BatchNorm_0": v} for c, v in from_torch(one).items()}
        with pytest.raises(ValueError, match=r"\[\['BatchNorm_0'\], .* give one layer's"):
            to_torch(model)
        for wrong in ({"params": np.ones(3)}, np.ones(3), nnx.Linear(2, 3, rngs=nnx.Rngs(0))):
            with pytest.raises(ValueError, match="must be those of one batch norm"):
                to_torch(wrong)

    def test_a_bias_without_a_scale_has_no_place_in_pytorch(self):
        with pytest.raises(ValueError, match="params/scale is missing, though params/bias is"):
            to_torch({"params": {"bias": np.ones(3)}})

    def test_num_batches_tracked(self, one):
        for wrong in (1.5, None):
            with pytest.raises(TypeError, match="as an integer"):
                to_torch(from_torch(one), num_batches_tracked=wrong)

    def test_momentum(self):
        with pytest.raises(ValueError, match="got None, with which PyTorch averages"):
            momentum_from_torch(None)
        for wrong in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match=r"share of the new value.*got"):
                momentum_from_torch(wrong)
            with pytest.raises(ValueError, match="share of the running value"):
                momentum_to_torch(wrong)

    @pytest.mark.parametrize(
        ("settings", "without", "message"),
        [
            ({"use_bias": False}, (), "has bias, but the layer has no bias.*use_bias=True"),
            ({}, ("weight", "bias"), "layer has a scale, but .* no weight .*use_scale=False"),
            ({}, ("bias",), "layer has a bias, but .* no bias .*use_bias=False"),
            ({"num_features": 4}, (), r"weight has shape \(3,\), .*\(4,\)\. .*num_features=3"),
            ({}, ("running_mean", "running_var"), 'no running_mean .*test_statistics="batch"'),
            ({}, ("running_var",), "running_var is missing"),
        ],
    )
    def test_a_layer_that_does_not_fit_is_left_alone(self, one, settings, without, message):
        layer = stein_nnx.SteinBatchNorm(**{"num_features": 3, "rngs": nnx.Rngs(0)} | settings)
        state = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(layer)))
        with pytest.raises(ValueError, match=message):
            load_torch(layer, {k: v for k, v in one.items() if k not in without})
        jax.tree.map(np.testing.assert_array_equal, state, nnx.to_pure_dict(nnx.state(layer)))

    @pytest.mark.parametrize("layer", [stein_linen.SteinBatchNorm(), np.ones(3), None])
    def test_no_nnx_layer(self, one, layer):
        with pytest.raises(TypeError, match=r"layer must be a flax\.nnx\.BatchNorm .*got"):
            load_torch(layer, one)


@pytest.fixture
def torch():
    return pytest.importorskip(
        "torch", reason="PyTorch is not installed; it is no dependency of steinnorm"
    )


class TestWithPyTorch:
    """What only PyTorch itself can say; skipped where it is not installed."""

    def test_its_file_is_the_one_that_was_read(self, torch, before):
        state = torch.load(DATA / "torch_batch_norm.pt", weights_only=True)
        assert state.keys() == before.keys()
        for name in NORMS:
            jax.tree.map(
                np.testing.assert_array_equal, from_torch(state, name), from_torch(before, name)
            )

    @pytest.mark.parametrize("kind", ["1d", "2d", "3d", "sync"])
    def test_it_loads_what_we_export(self, torch, one, kind):
        bn = {"1d": torch.nn.BatchNorm1d, "2d": torch.nn.BatchNorm2d, "3d": torch.nn.BatchNorm3d}
        model = torch.nn.Sequential(bn.get(kind, torch.nn.SyncBatchNorm)(3), torch.nn.ReLU())
        d = to_torch(from_torch(one), "0", num_batches_tracked=7)
        model.load_state_dict(model.state_dict() | {k: torch.as_tensor(v) for k, v in d.items()})
        assert_same({k.removeprefix("0."): v.numpy() for k, v in model.state_dict().items()}, one)

    def test_it_computes_the_same_from_what_we_trained(self, torch, key):
        layer = stein_nnx.SteinBatchNorm(3, rngs=nnx.Rngs(0))
        x = 2 * jax.random.normal(key, (8, 3)) + 1
        layer(x)
        bn = torch.nn.BatchNorm1d(3).eval()
        bn.load_state_dict({k: torch.as_tensor(v) for k, v in to_torch(layer).items()})
        layer.eval()
        y = bn(torch.as_tensor(np.array(x))).detach().numpy()
        np.testing.assert_allclose(layer(x), y, **CLOSE)

    def test_bfloat16_there_and_back(self, torch, one):
        bn = torch.nn.BatchNorm1d(3, dtype=torch.bfloat16)
        bn.load_state_dict({k: torch.as_tensor(v) for k, v in one.items()})
        d = to_torch(from_torch(bn.state_dict()))
        again = torch.nn.BatchNorm1d(3, dtype=torch.bfloat16)
        again.load_state_dict({k: torch.as_tensor(v) for k, v in d.items()})
        for key in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(again.state_dict()[key], bn.state_dict()[key])
        parameters = dict(bn.named_parameters()) | dict(bn.named_buffers())  # that need gradients
        assert from_torch(parameters)["params"]["scale"].dtype == jnp.float32
