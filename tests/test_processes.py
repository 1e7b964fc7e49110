"""Two real processes, joined by jax.distributed, give what one process gives."""

import json
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm import RunningStatistics
from steinnorm.functional import stein_batch_norm

PROGRAM = textwrap.dedent(
    """
    import json, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from steinnorm import RunningStatistics
    from steinnorm.functional import stein_batch_norm

    process, port = int(sys.argv[1]), sys.argv[2]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    mesh = jax.make_mesh((2,), ("processes",), axis_types=(AxisType.Auto,))
    whole = np.random.default_rng(0).normal(1e3, 1.0, (8, 4, 5)).astype(np.float32)
    mine = whole[:3] if process == 0 else whole[3:]  # unequal: 3 and 5, padded and masked
    padded = np.pad(mine, ((0, 5 - len(mine)), (0, 0), (0, 0)))
    mask = (np.arange(5) < len(mine)).reshape(5, 1, 1)

    def shared(a):
        return jax.make_array_from_process_local_data(NamedSharding(mesh, P("processes")), a)

    def step(x, mask):
        running = RunningStatistics(jnp.full(5, 0.5), jnp.full(5, 2.0))
        return stein_batch_norm(
            x, None, None, running, mask=mask, axis_name="processes", momentum=0.0
        ).running

    mapped = jax.shard_map(step, mesh=mesh, in_specs=P("processes"), out_specs=P())
    running = jax.jit(mapped)(shared(padded), shared(mask))
    print(json.dumps([np.asarray(a).tolist() for a in running]))
    """
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_agree_with_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(i), port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [p.communicate(timeout=180) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, (_, errors) in zip(processes, outputs, strict=True):
        assert p.returncode == 0, errors[-2000:]
    whole = np.random.default_rng(0).normal(1e3, 1.0, (8, 4, 5)).astype(np.float32)
    running = RunningStatistics(jnp.full(5, 0.5), jnp.full(5, 2.0))
    want = jax.jit(lambda x: stein_batch_norm(x, None, None, running, momentum=0.0).running)(whole)
    for out, _ in outputs:
        mean, variance = json.loads(out.strip().splitlines()[-1])
        np.testing.assert_allclose(mean, want.mean, rtol=1e-5)
        np.testing.assert_allclose(variance, want.variance, rtol=1e-4)  # of values near 1e3
