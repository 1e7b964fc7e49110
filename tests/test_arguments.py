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
from tests.front_ends import (
    COMPLEX,
    FEATURES,
    IMAGES,
    INFERENCE,
    RUNNING,
    X,
    linen_layer,
    nnx_layer,
)


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


def test_revert_thaws():
    layer = stein_nnx.revert(stein_nnx.freeze(nnx_layer(), None))
    layer.train()
    layer(X)
    assert np.all(layer.mean[...] != 0)


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
