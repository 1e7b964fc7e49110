"""What seeds of the command line may be."""

from experiments.errors import ConfigError


def check_seed(seed: int) -> None:
    """Refuses a seed that is none, or one that would be another's.

    JAX's keys are made of 32 bits unless it is told to use 64: seed 2^32 would give the weights of
    seed 0.

    Raises:
      ConfigError: the seed is negative, or has more than 32 bits.
    """
    if seed < 0:
        raise ConfigError(f"seed must be at least 0; got {seed}")
    if seed >= 2**32:
        raise ConfigError(f"seed must be below 2**32; got {seed}")
