"""Frozen layers use their running statistics, and keep them, in training too: NNX and Linen."""

import contextvars
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from steinnorm import _freezing, linen
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


class Net(nn.Module):
    """Two layers, stem and Inner_0/SteinBatchNorm_0."""

    @nn.compact
    def __call__(self, x, train=True):
        x = linen.SteinBatchNorm(use_running_average=not train, momentum=0.5, name="stem")(x)
        return Inner()(jnp.sin(x), train)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return jnp.sin(linen.SteinBatchNorm(use_running_average=not train, momentum=0.5)(x))


class Named(nn.Module):
    @nn.compact
    def __call__(self, x):
        return linen.SteinBatchNorm(use_running_average=False, name="stem")(x)


LINEN_LAYERS = ("stem", "Inner_0/SteinBatchNorm_0")


@pytest.fixture(scope="module")
def variables():
    made = Net().init(jax.random.key(0), X)
    return jax.tree.map(lambda a: a + 0.3, made)


def linen_step(variables, where, **options):
    """A training step compiled as a whole: gradients, and the layers whose statistics stayed."""

    @jax.jit
    def step(variables):
        def loss(params):
            with linen.freeze(where, **options):
                y, updated = Net().apply({**variables, "params": params}, X, mutable="batch_stats")
            return jnp.sum(y**2), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)(variables["params"])

    gradients, updated = step(variables)

    return by_layer(gradients), kept_layers(variables["batch_stats"], updated)


def by_layer(tree):
    inner = tree["Inner_0"]["SteinBatchNorm_0"]
    return dict(zip(LINEN_LAYERS, (tree["stem"], inner), strict=True))


def kept_layers(before, after):
    before, after = by_layer(before), by_layer(after)
    return {n for n in LINEN_LAYERS if np.array_equal(before[n]["mean"], after[n]["mean"])}


class TestLinen:
    @pytest.mark.parametrize(
        ("where", "frozen"),
        [
            (None, set(LINEN_LAYERS)),
            ("stem", {"stem"}),
            ("Inner_0", {"Inner_0/SteinBatchNorm_0"}),
            (LINEN_LAYERS, set(LINEN_LAYERS)),
            (lambda path: path == "stem", {"stem"}),
            ([], set()),
        ],
    )
    def test_which_layers_keep_their_statistics(self, variables, where, frozen):
        gradients, kept = linen_step(variables, where)
        assert kept == frozen
        assert all(np.any(g != 0) for g in jax.tree.leaves(gradients))

    def test_affine_parameters_get_no_gradient(self, variables):
        gradients, _ = linen_step(variables, "stem", affine=True)
        assert not any(np.any(g != 0) for g in jax.tree.leaves(gradients["stem"]))
        assert all(np.any(g != 0) for g in jax.tree.leaves(gradients[LINEN_LAYERS[1]]))

    def test_running_statistics_are_used(self, variables):
        with linen.freeze():
            y, _ = Net().apply(variables, X, mutable=["batch_stats"])
        np.testing.assert_allclose(y, Net().apply(variables, X, False), rtol=1e-6, atol=1e-6)

    def test_frozen_layers_need_no_mutable_statistics(self, variables):
        with linen.freeze():
            Net().apply(variables, X)

    def test_after_the_block_it_is_over(self, variables):
        with linen.freeze():
            pass_through, _ = Net().apply(variables, X, mutable=["batch_stats"])
        y, updated = Net().apply(variables, X, mutable=["batch_stats"])
        assert np.any(np.abs(y - pass_through) > 0.1)
        assert np.any(updated["batch_stats"]["stem"]["mean"] != 0.3)

    def test_an_error_inside_ends_it_too_and_is_the_one_that_is_seen(self, variables):
        with pytest.raises(RuntimeError, match="mine"), linen.freeze("nowhere"):
            raise RuntimeError("mine")
        _, kept = linen_step(variables, [])
        assert not kept

    def test_a_wrong_path_is_told_with_the_right_ones(self, variables):
        with pytest.raises(ValueError, match=r"'stem'.*Inner_0/SteinBatchNorm_0"):
            linen_step(variables, "trunk")

    def test_a_module_named_from_outside(self, variables):
        """A layer alone has the empty path: frozen by all, or by a function."""
        alone = linen.SteinBatchNorm(use_running_average=False)
        made = alone.init(jax.random.key(0), X)
        for where in (None, lambda path: path == ""):
            with linen.freeze(where):
                y, _ = alone.apply(made, X, mutable=["batch_stats"])
            np.testing.assert_allclose(y, X, rtol=1e-4)


class TestBlocksInsideOfBlocks:
    """A block adds to those around it: what any of them names is frozen."""

    def kept(self, variables):
        _, updated = Net().apply(variables, X, mutable=["batch_stats"])
        return kept_layers(variables["batch_stats"], updated["batch_stats"])

    def test_both_are_frozen_and_after_the_inner_the_outer_still(self, variables):
        with linen.freeze("stem"):
            with linen.freeze("Inner_0"):
                assert self.kept(variables) == set(LINEN_LAYERS)
            assert self.kept(variables) == {"stem"}
            with linen.freeze([]):
                assert self.kept(variables) == {"stem"}
        assert self.kept(variables) == set()

    @pytest.mark.parametrize("affine_is", ["outer", "inner"])
    def test_parameters_are_those_of_the_blocks_that_ask_for_it(self, variables, affine_is):
        def loss(params):
            with (
                linen.freeze("stem", affine=affine_is == "outer"),
                linen.freeze("Inner_0", affine=affine_is == "inner"),
            ):
                y, _ = Net().apply({**variables, "params": params}, X, mutable=["batch_stats"])
            return jnp.sum(y**2)

        gradients = by_layer(jax.grad(loss)(variables["params"]))
        still = [n for n in LINEN_LAYERS if not any(map(np.any, jax.tree.leaves(gradients[n])))]
        assert still == [LINEN_LAYERS[affine_is == "inner"]]

    def test_an_error_in_the_inner_leaves_the_outer_as_it_is(self, variables):
        with linen.freeze("stem"):
            with pytest.raises(RuntimeError, match="mine"), linen.freeze("Inner_0"):
                raise RuntimeError("mine")
            assert self.kept(variables) == {"stem"}

    def test_each_tells_its_own_wrong_path(self, variables):
        with linen.freeze("stem"):
            with (
                pytest.raises(ValueError, match=r"'boughs'.*'stem', 'Inner_0/"),
                linen.freeze("boughs"),
            ):
                self.kept(variables)
            assert self.kept(variables) == {"stem"}
        with (
            pytest.raises(ValueError, match=r"'roots'.*'stem', 'Inner_0/"),
            linen.freeze("roots"),
            linen.freeze("stem"),
        ):
            self.kept(variables)

    def test_layers_of_the_inner_count_for_the_outer(self, variables):
        with linen.freeze(LINEN_LAYERS), linen.freeze(lambda path: path == "stem"):
            assert self.kept(variables) == set(LINEN_LAYERS)


def _loss(variables, x):
    y, updated = Net().apply(variables, x, mutable=["batch_stats"])
    return jnp.sum(y**2), updated["batch_stats"]["stem"]["mean"]


def _scanned(body):
    def run(variables, x):
        _, results = jax.lax.scan(body, variables, x[None])
        return jax.tree.map(lambda a: a[0], results)

    return run


CACHED = {
    "jit": lambda: jax.jit(_loss),
    "checkpoint": lambda: jax.checkpoint(_loss),
    "grad of checkpoint": lambda: jax.value_and_grad(jax.checkpoint(_loss), has_aux=True),
    "scan": lambda: _scanned(lambda variables, x: (variables, _loss(variables, x))),
}


@pytest.mark.skipif(
    not hasattr(jax, "make_user_context"),
    reason="what this version of JAX has traced stays as it is",
)
class TestCachesOfJAX:
    """Functions that were traced in a block, and then called outside; and the other way round."""

    @pytest.mark.parametrize("kind", CACHED)
    def test_a_function_is_frozen_in_the_block_and_nowhere_else(self, variables, kind):
        call = CACHED[kind]()

        def mean():
            result = call(variables, X)
            return np.asarray(jax.tree.leaves(result)[1])

        def frozen_mean():
            with linen.freeze("stem"):
                return mean()

        for _ in range(2):  # the second time from the caches
            np.testing.assert_array_equal(frozen_mean(), np.float32(0.3))
            assert np.all(mean() != np.float32(0.3))

    def test_a_compiled_function_inside_of_another(self, variables):
        helper = jax.jit(lambda variables: _loss(variables, X)[1])

        @jax.jit
        def step(variables):
            with linen.freeze("stem"):
                frozen = helper(variables)
            return frozen, helper(variables)

        frozen, free = step(variables)
        np.testing.assert_array_equal(frozen, np.float32(0.3))
        assert np.all(free != np.float32(0.3))
        np.testing.assert_array_equal(helper(variables), free)

    def test_blocks_inside_of_blocks(self, variables):
        step = jax.jit(lambda held: Net().apply(held, X, mutable=["batch_stats"])[1])

        def kept():
            return kept_layers(variables["batch_stats"], step(variables)["batch_stats"])

        for _ in range(2):  # the second time from the caches
            for order in (LINEN_LAYERS, LINEN_LAYERS[::-1]):
                with linen.freeze(order[0]):
                    with linen.freeze(order[1]):
                        assert kept() == set(LINEN_LAYERS)
                    assert kept() == {order[0]}
            assert kept() == set()

    def test_after_an_error_in_the_first_block_the_caches_are_enough(self, variables):
        """As in a notebook, where one stops a cell and runs it again."""
        call = jax.jit(_loss)
        where = ["Inner_0", "stem"]  # of no other test

        def stopped():
            with linen.freeze(where):
                call(variables, X)
                raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            stopped()
        with linen.freeze(where):
            _, mean = call(variables, X)
        np.testing.assert_array_equal(mean, np.float32(0.3))

    def test_among_many_other_blocks_one_that_is_used_is_not_forgotten(
        self, variables, monkeypatch
    ):
        monkeypatch.setattr(_freezing, "_found", {})
        monkeypatch.setattr(_freezing, "_MOST_REMEMBERED", 2)

        @jax.jit
        def call(variables, x):  # which no other test has traced
            return _loss(variables, x)

        for where in ("Inner_0", LINEN_LAYERS[1], None):
            for chosen in ("stem", where):
                with linen.freeze(chosen):
                    call(variables, X)

    def test_a_thread_has_blocks_of_its_own(self, variables):
        call = jax.jit(_loss)

        def stays():
            return bool(np.all(call(variables, X)[1] == np.float32(0.3)))

        with linen.freeze("stem"), ThreadPoolExecutor(1) as threads:
            assert not threads.submit(contextvars.Context().run, stays).result()
            assert stays()
            assert not threads.submit(contextvars.Context().run, stays).result()

    def test_what_a_copied_context_would_leave_in_the_caches_is_refused(self, variables):
        """As of asyncio.to_thread, which takes Python's variables along, and not JAX's."""

        @jax.jit
        def call(variables, x):  # which no other test has traced
            return _loss(variables, x)

        with linen.freeze("stem"), ThreadPoolExecutor(1) as threads:
            copied = contextvars.copy_context()
            running = threads.submit(copied.run, call, variables, X)
            with pytest.raises(RuntimeError, match="in another thread or task"):
                running.result()
            _, mean = call(variables, X)
        np.testing.assert_array_equal(mean, np.float32(0.3))
        assert np.all(call(variables, X)[1] != np.float32(0.3))

    def test_a_wrong_path_is_told_after_a_right_one_too(self, variables):
        call = jax.jit(_loss)
        for _ in range(2):
            with linen.freeze("stem"):
                call(variables, X)
            with pytest.raises(ValueError, match="'trunk'"), linen.freeze("trunk"):
                call(variables, X)

    def test_a_block_of_which_a_part_comes_from_the_caches(self, variables):
        inner = jax.jit(lambda held, x: Inner().apply(held, x, True, mutable=["batch_stats"])[0])
        alone = jax.jit(lambda held, x: Named().apply(held, x, mutable=["batch_stats"])[0])
        of_inner = jax.tree.map(lambda a: a + 0.3, Inner().init(jax.random.key(0), X, True))
        of_alone = Named().init(jax.random.key(0), X)
        for rows in (8, 8, 4):  # the last traces the one anew, and not the other
            with linen.freeze(["SteinBatchNorm_0", "stem"]):
                inner(of_inner, X)
                alone(of_alone, X[:rows])

    def test_a_choice_that_cannot_be_hashed(self, variables):
        class Choice:
            __hash__ = None

            def __call__(self, path):
                return path == "stem"

        with linen.freeze(Choice()):
            _, mean = _loss(variables, X)
        np.testing.assert_array_equal(mean, np.float32(0.3))
