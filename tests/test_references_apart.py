"""Devices whose running means differ, as replicas trained apart have, sum about one point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from steinnorm import batch_statistics
from steinnorm._common_references import digest_of
from steinnorm._sums import Plan

DEVICES, CHANNELS = 4, 5
RNG = np.random.default_rng(0)
X = RNG.normal(1, 2, (DEVICES, 6, 3, CHANNELS)).astype(np.float32)
MASK = RNG.random((DEVICES, 6, 3, CHANNELS)) < 0.7
APART = RNG.normal(size=(DEVICES, CHANNELS)).astype(np.float32)
ONE_APART = np.zeros((DEVICES, CHANNELS), np.float32)
ONE_APART[2, 3] = 1e-3
FAR = APART * 1e4
SAME = np.broadcast_to(APART[0], APART.shape)
ALL = {"apart": APART, "one of all": ONE_APART, "far": FAR, "the same": SAME}

needs_devices = pytest.mark.skipif(
    jax.device_count() < DEVICES, reason=f"needs {DEVICES} devices, got {jax.device_count()}"
)


def one_device(reference, x, mask, noise):
    found = batch_statistics(x, mask=mask, axis_name="d", reference=reference, noise=noise)
    return found.mean, found.variance, found.mean_noise if noise else found.mean


def mapped(how):
    if how == "vmap":
        return jax.jit(
            jax.vmap(one_device, axis_name="d", in_axes=(0, 0, 0, None)), static_argnums=3
        )
    if how == "pmap":
        return jax.pmap(one_device, axis_name="d", static_broadcasted_argnums=3)
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))

    def of_shard(noise, *arrays):
        found = one_device(*(None if a is None else a[0] for a in arrays), noise)
        return [a[None] for a in found]

    def call(reference, x, mask, noise):
        shards = jax.shard_map(
            lambda *arrays: of_shard(noise, *arrays),
            mesh=mesh,
            in_specs=P("d"),
            out_specs=P("d"),
            check_vma=how == "types",
        )
        return jax.jit(shards)(reference, x, mask)

    return call


@needs_devices
@pytest.mark.parametrize("references", ALL)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("how", ["pmap", "vmap", "types", "no types"])
def test_statistics_are_those_of_the_whole_batch(how, masked, references):
    noise = references in ("apart", "the same")
    valid = MASK if masked else np.ones_like(MASK)
    found = mapped(how)(ALL[references], X, MASK if masked else None, noise)
    values = np.where(valid, X.astype(np.float64), np.nan)
    mean, variance = np.nanmean(values, (0, 1, 2)), np.nanvar(values, (0, 1, 2))
    # Each value about the mean, its sign with it; the reference that the noise is made with.
    whole = batch_statistics(
        X.reshape(-1, 3, CHANNELS),
        mask=valid.reshape(-1, 3, CHANNELS) if masked else None,
        noise=noise,
    )
    for device in range(DEVICES):
        np.testing.assert_allclose(found[0][device], mean, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(found[1][device], variance, rtol=5e-6)
        if noise:
            np.testing.assert_allclose(found[2][device], whole.mean_noise, rtol=1e-4)


@needs_devices
@pytest.mark.parametrize("how", ["pmap", "types"])
def test_gradients_are_those_of_the_whole_batch(how):
    weights = jnp.asarray(RNG.normal(size=CHANNELS), jnp.float32)

    def loss(x):
        found = mapped(how)(APART, x, None, False)
        return jnp.sum(jnp.sin(found[0][0]) * weights + found[1][0] ** 2)

    def whole(x):
        found = batch_statistics(x.reshape(-1, 3, CHANNELS))
        return jnp.sum(jnp.sin(found.mean) * weights + found.variance**2)

    np.testing.assert_allclose(jax.grad(loss)(X), jax.grad(whole)(X), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 256, 4096, 10**6])
def test_digests_tell_references_apart_and_add_up_exactly(devices):
    groups = (tuple(range(devices)),)
    plan = Plan(axes=(0,), dtype=jnp.float32, axis_name="d", groups=groups)
    values = jnp.asarray(RNG.normal(size=(1000, 7)), jnp.float32)
    digests = np.asarray(jax.vmap(lambda v: digest_of(plan, v))(values))
    numbers, squares = np.split(digests.astype(np.float64), 2, axis=1)
    np.testing.assert_array_equal(squares, numbers**2)
    assert devices * squares.max() <= 2**24 or numbers.max() == 1
    # All values are taken: the digests are as good as drawn.
    most = 2 ** int(np.ceil(np.log2(numbers.max() + 1)))
    assert len(np.unique(numbers)) > 0.6 * most
    alike = np.mean(np.all(digests[:500] == digests[500:], axis=1))
    assert alike <= 2 / most**2 + 0.01
    # A single last bit counts, and which value is whose.
    near = np.nextafter(values, np.inf, dtype=np.float32)
    for other in (values.at[:, 4].set(near[:, 4]), values[:, ::-1], -values):
        changed = np.asarray(jax.vmap(lambda v: digest_of(plan, v))(other))
        assert np.mean(np.all(changed == digests, axis=1)) <= 2 / most**2 + 0.01


def test_digests_of_other_numbers():
    plan = Plan(axes=(0,), dtype=jnp.float32, axis_name="d", groups=((0, 1),))
    real = jnp.asarray(RNG.normal(size=3), jnp.float32)
    complexes = [lax.complex(real, real), lax.complex(real, -real)]
    assert not np.array_equal(*(digest_of(plan, a) for a in complexes))
    assert digest_of(plan, complexes[0]).dtype == jnp.float32
    assert np.isfinite(digest_of(plan, jnp.zeros(0))).all()


def test_digests_of_float64_take_all_of_its_bits():
    plan = Plan(axes=(0,), dtype=np.float64, axis_name="d", groups=((0, 1),))
    with jax.enable_x64(True):
        real = jnp.asarray(RNG.normal(size=(3, 2)))
        found = digest_of(plan, real)
        assert (found.shape, found.dtype) == ((4,), jnp.float64)
        for place in np.ndindex(real.shape):
            # The last bits are in the one half of a number, the first ones in the other.
            for other in (np.nextafter(real[place], 9), -real[place]):
                assert not np.array_equal(digest_of(plan, real.at[place].set(other)), found)


@needs_devices
def test_devices_apart_in_float64():
    with jax.enable_x64(True):
        x, references = X.astype(np.float64), FAR.astype(np.float64)
        found = mapped("vmap")(references, x, None, False)
        whole = x.reshape(-1, CHANNELS)
        for ours, exact in zip(found, (whole.mean(0), whole.var(0)), strict=False):
            np.testing.assert_allclose(ours, np.stack([exact] * DEVICES), rtol=1e-11)
