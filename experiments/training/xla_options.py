"""Chooses how the training steps of our own networks are compiled."""

import functools

import jax
import jax.numpy as jnp

# XLA's own gradient of a 2-D convolution with respect to the kernel is slow on CPUs.  With the
# matrix products of the YNNPACK library a training step of ResNet-9 took 0.30 of the time at width
# 64 and 0.51 at width 16 on 2 cores, one of the paper's HRNet 0.72 on the same cores when busy;
# the products of the 3-D network's patches took 5.5 times as long, so it is not for all
# (python -m benchmarks.compiler_options).
#
# For the training steps of our own networks only, whose weights are arguments.  In jaxlib 0.10.2
# the option reads memory that nobody wrote for a product whose right side is one number, repeated,
# as in ``x @ jnp.ones((192, 5))``: functions that others hand in may hold such constants.  Attacks
# and evaluations are compiled with XLA's defaults.
_CPU_2D = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}


def compiler_options(input_rank: int, platform: str) -> dict[str, str]:
    """Returns the options of ``jax.jit`` for inputs of that rank, (B, H, W, C) being 4.

    Nothing where they are not for the device, or this version of XLA does not know them: they are
    experimental.

    Args:
      input_rank: of the inputs.
      platform: of the devices that the program is compiled for, which need not be those that JAX
        would choose on this host.
    """
    if platform != "cpu" or input_rank != 4:
        return {}
    return dict(_CPU_2D) if _known() else {}


@functools.cache
def _known() -> bool:
    try:
        jax.jit(jnp.negative, compiler_options=_CPU_2D).lower(jnp.float32(0)).compile()
    except Exception:  # whatever class this version has for an option that it does not know
        return False
    return True
