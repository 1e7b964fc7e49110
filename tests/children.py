"""The environment of processes that tests start."""

import os

_COUNT = "--xla_force_host_platform_device_count"
_OTHER_CODE = "--xla_cpu_use_fusion_emitters"  # of the flags in tests/conftest.py


def environment(devices=1, *, as_users_compile=False, **more):
    """Returns a user's environment with so many host devices, and more variables.

    Compiled as tests/conftest.py says, for most of the time is compilation, and so that results
    are those of this process; or with all of XLA's optimisations, as users compile, where a test
    has bounds on how far rounding may go.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    dropped = (_COUNT, _OTHER_CODE) if as_users_compile else _COUNT
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(dropped)]
    flags += [f"{_COUNT}={devices}"] if devices > 1 else []
    return {
        **inherited,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if as_users_compile else "1",
        **more,
    }
