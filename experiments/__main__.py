"""The command line: parses, calls, and turns a user's mistake into one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from experiments.config import ConfigError


def demo(
    workdir: Path,
    norms: tuple[str, ...] = (),
    seeds: int = 2,
    smoke: bool = False,
) -> None:
    """Train every norm on real digits, attack it, print a table, write tables and plots.

    Args:
        workdir: Folder for the results; finished runs in it are reused.
        norms: Norms to compare; all of them if none is named.
        seeds: Number of seeds.
        smoke: Tiny network and few images: seconds instead of minutes.
    """
    # Imported here, so that --help answers at once.
    from experiments import demo as command  # noqa: PLC0415
    from experiments.models.norms import NORMS  # noqa: PLC0415

    command.run(workdir, norms=norms or NORMS, seeds=seeds, smoke=smoke)


def risk(out: Path, smoke: bool = False, seed: int = 0) -> None:
    """Measure how well each estimator finds the true statistics of a network's feature maps.

    Args:
        out: Folder for the results.
        smoke: Tiny network and few batches: seconds instead of a minute.
        seed: Of the network and of the batches.
    """
    from experiments import risk as command  # noqa: PLC0415

    command.run(out, smoke=smoke, seed=seed)


def list_configs() -> None:
    """List the configurations with data set, size and expected time."""
    from experiments import configs  # noqa: PLC0415

    for name in configs.names():
        config = configs.by_name(name)
        print(f"{name}\n  data  {config.dataset}\n  size  {config.size}")
        print(f"  time  {config.expected_time}")


_COMMANDS: dict[str, Callable[..., Any]] = {"demo": demo, "risk": risk, "list": list_configs}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: those after the program's name; ``sys.argv`` by default.

    Returns:
      The exit status: 0, or 2 where the user asked for something impossible.
    """
    try:
        tyro.extras.subcommand_cli_from_dict(
            _COMMANDS, prog="python -m experiments", args=arguments
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
