"""Frozen layers use their running statistics, and keep them, in training too: NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from steinnorm import nnx as stein_nnx

X = np.random.default_rng(0).normal(1, 2, (8, 3)).astype(np.float32)


def layer(features, rngs):
    """Running statistics and parameters that are not as they were made."""
    norm = stein_nnx.SteinBatchNorm(features, momentum=0.5, rngs=rngs)
    norm.mean[...] = jnp.arange(features, dtype=jnp.float32)
    norm.var[...] = jnp.full(features, 2.0, jnp.float32)
    norm.scale[...] = jnp.full(features, 1.5, jnp.float32)
    return norm


class Model(nnx.Module):
    """Three layers: stem, blocks/0/norm and blocks/1/norm."""

    def __init__(self, rngs):
        self.stem = layer(3, rngs)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = layer(3, rngs)

    def __call__(self, x):
        return jnp.sin(self.norm(x))


LAYERS = ("stem", "blocks/0/norm", "blocks/1/norm")


def layers_of(model):
    norms = (model.stem, model.blocks[0].norm, model.blocks[1].norm)
    return dict(zip(LAYERS, norms, strict=True))


def train_step(model):
    """Returns the gradients by layer, and which layers kept their running statistics."""
    before = {n: np.asarray(m.mean[...]) for n, m in layers_of(model).items()}

    @nnx.jit
    def step(model, x):
        return nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)

    gradients = layers_of(step(model, X))
    kept = {n for n, m in layers_of(model).items() if np.array_equal(m.mean[...], before[n])}
    return gradients, kept


class TestNNX:
    @pytest.mark.parametrize(
        ("where", "frozen"),
        [
            (None, set(LAYERS)),
            ("stem", {"stem"}),
            ("blocks", {"blocks/0/norm", "blocks/1/norm"}),
            ("/blocks/1/", {"blocks/1/norm"}),
            (["stem", "blocks/0/norm"], {"stem", "blocks/0/norm"}),
            (lambda path: path.endswith("norm"), {"blocks/0/norm", "blocks/1/norm"}),
        ],
    )
    def test_which_layers_keep_their_statistics(self, where, frozen):
        model = stein_nnx.freeze(Model(nnx.Rngs(0)), where)
        model.train()  # does not thaw
        gradients, kept = train_step(model)
        assert kept == frozen
        for gradient in gradients.values():  # the parameters still learn
            assert np.any(gradient.scale[...] != 0)
            assert np.any(gradient.bias[...] != 0)

    def test_affine_parameters_get_no_gradient(self):
        gradients, kept = train_step(stein_nnx.freeze(Model(nnx.Rngs(0)), "blocks/0", affine=True))
        assert kept == {"blocks/0/norm"}
        for name, gradient in gradients.items():
            learns = name != "blocks/0/norm"
            assert np.any(gradient.scale[...] != 0) == learns
            assert np.any(gradient.bias[...] != 0) == learns

    def test_running_statistics_are_used(self):
        model = Model(nnx.Rngs(0))
        frozen = stein_nnx.freeze(model)
        want = nnx.view(model, use_running_average=True)(X)
        np.testing.assert_allclose(frozen(X), want, rtol=1e-6, atol=1e-6)
        assert np.any(np.abs(model(X) - want) > 0.1)

    def test_gradients_reach_what_lies_before(self):
        frozen = stein_nnx.freeze(layer(3, nnx.Rngs(0)), affine=True)
        gradient = jax.grad(lambda x: jnp.sum(frozen(x)))(X)
        np.testing.assert_allclose(gradient, 1.5 / np.sqrt(2 + 1e-5), rtol=1e-6)

    def test_the_original_model_is_left_alone(self):
        model = Model(nnx.Rngs(0))
        stein_nnx.freeze(model, affine=True)
        assert {m.frozen for m in layers_of(model).values()} == {"no"}
        _, kept = train_step(model)
        assert not kept

    @pytest.mark.parametrize("empty", [[], (), iter([])])
    def test_thawing(self, empty):
        thawed = stein_nnx.freeze(stein_nnx.freeze(Model(nnx.Rngs(0)), affine=True), empty)
        assert {m.frozen for m in layers_of(thawed).values()} == {"no"}
        gradients, kept = train_step(thawed)
        assert not kept
        assert all(np.any(g.scale[...] != 0) for g in gradients.values())

    def test_freezing_again_thaws_the_others(self):
        model = stein_nnx.freeze(stein_nnx.freeze(Model(nnx.Rngs(0)), "stem"), "blocks")
        assert [m.frozen for m in layers_of(model).values()] == ["no", "statistics", "statistics"]

    @pytest.mark.parametrize("where", ["block", "blocks/2", ["trunk", "head"], lambda path: False])
    def test_a_wrong_path_is_told_with_the_right_ones(self, where):
        with pytest.raises(ValueError, match="'stem'") as error:
            stein_nnx.freeze(Model(nnx.Rngs(0)), where)
        assert all(repr(name) in str(error.value) for name in LAYERS)

    @pytest.mark.parametrize(
        "where", ["encoder", "decoder", "decoder/layers/0", ["decoder", "encoder"]]
    )
    def test_a_shared_layer_is_named_at_any_of_its_places(self, where):
        shared, own = layer(3, nnx.Rngs(0)), layer(3, nnx.Rngs(0))
        model = nnx.Dict(
            encoder=nnx.Sequential(shared), decoder=nnx.Sequential(shared), head=nnx.Sequential(own)
        )
        model.decoder.model = model  # in a circle
        frozen = stein_nnx.freeze(model, where)
        assert frozen.encoder.layers[0].frozen == "statistics"
        assert frozen.decoder.layers[0] is frozen.encoder.layers[0]
        if "decoder" not in where:  # which holds all of the model
            assert frozen.head.layers[0].frozen == "no"
        with pytest.raises(ValueError, match="names no SteinBatchNorm by 'tail'"):
            stein_nnx.freeze(model, ["decoder", "tail"])

    def test_what_is_no_model(self):
        with pytest.raises(TypeError, match="must be a flax"):
            stein_nnx.freeze(X)
        with pytest.raises(ValueError, match="none"):
            stein_nnx.freeze(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))

    def test_flax_layers_can_be_frozen_by_converting_them(self):
        model = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
        frozen = stein_nnx.freeze(stein_nnx.convert(model, "none"), "layers/0")
        np.testing.assert_allclose(frozen(X), X, rtol=1e-4)

    def test_inside_jit(self):
        @nnx.jit
        def step(model, x):
            y = stein_nnx.freeze(model)(x)
            return y, model(x)

        model = layer(3, nnx.Rngs(0))
        inference = nnx.view(model, use_running_average=True)(X)
        y, _ = step(model, X)
        np.testing.assert_allclose(y, inference, rtol=1e-5, atol=1e-6)
