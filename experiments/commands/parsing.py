"""From the arguments of the command line to the call that they mean, by tyro."""

import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from experiments.errors import ConfigError

PROGRAM = "python -m experiments"


def parse(
    commands: Mapping[str, Callable[..., Any]],
    arguments: Sequence[str],
    rules: tyro.constructors.ConstructorRegistry | None = None,
) -> Callable[[], Any]:
    """Returns the command that the arguments ask for, ready to be called.

    Args:
      commands: by name.
      arguments: those after the program's name.
      rules: for types that tyro does not know.

    Raises:
      ConfigError: they ask for none.
      SystemExit: they ask for help, which was printed.
    """
    complaint = io.StringIO()
    try:
        # Tyro prints what is wrong in a frame of many lines, and exits.
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                {name: _postponed(command) for name, command in commands.items()},
                prog=PROGRAM,
                args=arguments,
                registry=rules,
            )
    except SystemExit as end:
        if not end.code:
            raise
    named = [PROGRAM, *(name for name in arguments[:1] if name in commands), "--help"]
    raise ConfigError(f"{_in_one_line(complaint.getvalue())}; see {' '.join(named)}")


def first_look(options: type, arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options among arguments as texts, whatever else there is.

    Args:
      options: a dataclass; its first field is positional, those that are no bool take a value.
      arguments: of the command line.
    """
    positional, *others = dataclasses.fields(options)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(positional.name, nargs="?")
    for field in others:
        names = sorted({f"--{field.name}", f"--{field.name.replace('_', '-')}"})
        if field.type is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(*names, nargs="?")
    return parser.parse_known_args(arguments)[0]


def _postponed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function with the same arguments that returns the call instead of making it."""

    @functools.wraps(command)
    def later(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(command, *args, **kwargs)

    return later


def _in_one_line(complaint: str) -> str:
    """Tyro's complaint without its frame: what is wrong, and what was perhaps meant."""
    # A frame is of box characters, or on some terminals of hyphens; its first line is the title.
    _, *lines = (line.strip(" │╭╮╰╯─") for line in complaint.splitlines())
    # Rulers part the sections; a line that is wrapped goes on in the next.
    grouped = itertools.groupby(lines, key=lambda line: bool(line.strip("-")))
    sections = [" ".join(" ".join(group).split()) for is_text, group in grouped if is_text]
    return "; ".join(
        f"perhaps you meant {', '.join(dict.fromkeys(re.findall(r'--[a-z.-]+', section)))}"
        if section.startswith("Perhaps you meant")
        else section.partition(" Got errors:")[0].rstrip(".")
        for section in sections
        if not section.startswith(("For full help", "Argument help"))
    )
