"""Linen blocks of frozen layers: in each other, in JAX's caches, in threads."""

import contextvars
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from steinnorm import _freezing, linen

X = np.random.default_rng(0).normal(1, 2, (8, 3)).astype(np.float32)


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
