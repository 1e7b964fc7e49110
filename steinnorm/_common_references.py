"""Makes sure that all devices of a mapped axis sum about the same reference.

Sums about different points cannot be added. Running means are the same on all devices where
training keeps them so, but not on replicas that were trained apart and get an axis name afterwards.

Where types say along which axes devices differ (``shard_map`` with its checks), a reference that
does is replaced by its mean over the devices, which costs an all-reduce. Elsewhere (``pmap``,
``vmap``, ``shard_map`` without) each device adds a digest of its reference to what it sends anyway,
and all see in the sums whether the digests were equal.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from steinnorm._compat import varying_axes
from steinnorm._sums import Plan

__all__ = ["digest_of", "digests_differ", "made_common", "types_tell"]

# Two whole numbers make a digest, of as many bits as leave float32 room for the sum of their
# squares: of 11 for two devices, where two references have the same digest once in 4e6 times, and
# of 7 for 256, where one device's is overlooked once in 2e4 times.
_NUMBERS, _EXACT_BITS = 2, 23
# Multipliers of two hashes of 32-bit numbers: Knuth's (The Art of Computer Programming, volume 3,
# section 6.4), and those of MurmurHash3's last step (Appleby 2011).
_GOLDEN, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


def types_tell(plan: Plan, x: jax.Array) -> bool:
    """Returns whether the type of the batch says that devices of the mapped axis differ."""
    return plan.axis_name is not None and set(plan.axis_names) <= set(varying_axes(x))


def made_common(plan: Plan, reference: jax.Array) -> jax.Array:
    """Returns the reference, or its mean over those axes along which its type says it differs."""
    apart = tuple(set(plan.axis_names) & set(varying_axes(reference)))
    return lax.pmean(reference, apart) if apart else reference


def digest_of(plan: Plan, reference: jax.Array) -> jax.Array:
    """Returns two small whole numbers, made of all bits of the reference, and their squares.

    Args:
      plan: over which devices they will be added.
      reference: in the shape of the features, real or complex.

    Returns:
      Floats of the reference's precision, of shape (4,).
    """
    groups = plan.groups or ()
    most = max(map(len, groups)) if groups else int(plan.devices)
    bits_left = max((_EXACT_BITS - (most - 1).bit_length()) // 2, 1)
    reference = lax.stop_gradient(reference)
    parts = [reference.real, reference.imag] if jnp.iscomplexobj(reference) else [reference]
    hashes = [_hash(number, parts) >> jnp.uint32(32 - bits_left) for number in range(_NUMBERS)]
    small = jnp.stack(hashes).astype(parts[0].dtype)
    return jnp.concatenate([small, jnp.square(small)])


def digests_differ(plan: Plan, total: jax.Array) -> jax.Array:
    """Returns whether the digests of any two devices differed; the same on all devices.

    n times the sum of squares is the square of the sum only where all n numbers are equal (Cauchy
    and Schwarz). Both sides are products of exact factors, and so are rounded alike.

    Args:
      plan: how the digests were added.
      total: their sum over the devices, (4,).
    """
    numbers, squares = jnp.split(total, 2)
    return jnp.any(squares * jnp.asarray(plan.devices, total.dtype) != jnp.square(numbers))


def _hash(number: int, parts: list[jax.Array]) -> jax.Array:
    """Returns a hash of all bits of arrays of one shape, of which ``number`` makes another."""
    hashed = jnp.uint32(0)
    for i, part in enumerate(parts):
        bits = lax.bitcast_convert_type(part, jnp.uint32)  # of float64 with one axis more
        # Places without flattening, which explicit meshes refuse.
        place, stride = jnp.uint32(i * bits.size * _NUMBERS + number + 1), _NUMBERS
        for axis in reversed(range(bits.ndim)):
            steps = lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            place, stride = place + jnp.uint32(stride) * steps, stride * bits.shape[axis]
        salt = _mixed(place)
        hashed += jnp.sum(_mixed(bits ^ salt) * (salt | jnp.uint32(1)), dtype=jnp.uint32)
    return _mixed(hashed)


def _mixed(number: jax.Array) -> jax.Array:
    """Returns a hash of each 32-bit number."""
    number = number * jnp.uint32(_GOLDEN)
    number = (number ^ (number >> jnp.uint32(16))) * jnp.uint32(_FIRST)
    number = (number ^ (number >> jnp.uint32(13))) * jnp.uint32(_SECOND)
    return number ^ (number >> jnp.uint32(16))
