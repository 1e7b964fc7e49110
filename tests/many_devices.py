"""Run by test_many_devices in processes of their own: the layer's programs, described as JSON.

``XLA_FLAGS=--xla_force_host_platform_device_count=N python -m tests.many_devices reduced``.
"""

import functools
import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.hlo_text import collectives
from steinnorm import RunningStatistics, stein_batch_norm

DEVICES = jax.device_count()
CHANNELS, EACH, SIZE = 6, 2, (4, 4, 6)  # channels, examples a device, size of an example
RULES = ("none", "stein", "toward_running")


def forward(x, axis_name=None, shrinkage="stein"):
    running = RunningStatistics(
        jnp.full(CHANNELS, 0.3, jnp.float32), jnp.full(CHANNELS, 2.0, jnp.float32)
    )
    result = stein_batch_norm(x, running=running, axis_name=axis_name, shrinkage=shrinkage)
    return result.y, result.running


def both(x, axis_name=None, shrinkage="stein"):
    """The gradient as well; that of a loss which is a sum over examples needs no all-reduce."""
    (y, running), pull_back = jax.vjp(
        functools.partial(forward, axis_name=axis_name, shrinkage=shrinkage), x
    )
    (gradient,) = pull_back((jnp.cos(y), jax.tree.map(jnp.zeros_like, running)))
    return y, running, gradient


def a_mesh(size):
    return Mesh(np.array(jax.devices()[:size]), ("d",), axis_types=(AxisType.Auto,))


def shape(*sizes, mesh=None):
    sharding = None if mesh is None else NamedSharding(mesh, P("d"))
    return jax.ShapeDtypeStruct((*sizes, *SIZE), "float32", sharding=sharding)


def under_jit(function, size=DEVICES):
    return jax.jit(function).lower(shape(EACH * size, mesh=a_mesh(size)))


def in_shard_map(function, size=DEVICES):
    mesh = a_mesh(size)
    outputs = (P("d"), P()) if function.func is forward else (P("d"), P(), P("d"))
    mapped = jax.shard_map(
        functools.partial(function, axis_name="d"), mesh=mesh, in_specs=P("d"), out_specs=outputs
    )
    return jax.jit(mapped).lower(shape(EACH * size, mesh=mesh))


def in_pmap(function):
    mapped = jax.pmap(functools.partial(function, axis_name="d"), axis_name="d")
    return mapped.lower(shape(DEVICES, EACH))


def digest(lowered):
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def programs():
    """Digests of programs before XLA has them: on one device, and on four that are sharded over."""
    found = {"one device": {}, "four devices": {}}
    for name in RULES:
        function = functools.partial(both, shrinkage=name)
        found["one device"][name] = digest(jax.jit(function).lower(shape(8)))
        if DEVICES >= 4:
            for way in (under_jit, in_shard_map):
                found["four devices"][f"{way.__name__} {name}"] = digest(way(function, size=4))
    return found


def reduced():
    """What the compiled programs reduce over all devices, forward and with the gradient."""
    return {
        f"{way.__name__} {name}": {
            what.__name__: collectives(
                way(functools.partial(what, shrinkage=name)).compile().as_text()
            )._asdict()
            for what in (forward, both)
        }
        for name in RULES
        for way in (under_jit, in_shard_map, in_pmap)
        if way is not in_pmap or name == "stein"  # pmap compiles what shard_map does
    }


if __name__ == "__main__":
    known = {"programs": programs, "reduced": reduced}
    json.dump({what: known[what]() for what in sys.argv[1:]}, sys.stdout)
