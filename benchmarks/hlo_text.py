"""What does an optimised XLA program hold? Counts from its text."""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?\S+ = ")
_BRANCHES = re.compile(r"(?:true_computation|false_computation)=%?([\w.\-]+)")
_BRANCH_LIST = re.compile(r"branch_computations=\{([^}]*)\}")
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|async_wrapped_computation)=%?([\w.\-]+)"
    r"|called_computations=\{([^}]*)\}"
)
_REDUCED = re.compile(r" = (.*?) all-reduce(?:-start)?\(")
_TYPE = re.compile(r"(\w+)\[[\d,]*\]")
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")
_OTHER = re.compile(
    r" (?:all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)(?:-start)?\("
)


class Collectives(NamedTuple):
    """What a program exchanges between devices.

    Attributes:
      always: numbers in the results of all-reduces that run whenever the program runs.
      in_branches: the same of those that only a conditional reaches, all branches together.
      all_reduces: number of instructions of the first kind.
      all_reduces_in_branches: number of instructions of the second kind.
      others: number of collectives that are no all-reduces.
    """

    always: int
    in_branches: int
    all_reduces: int
    all_reduces_in_branches: int
    others: int


def instructions(text: str) -> int:
    """Returns how many instructions a program has, those inside fusions too."""
    return sum(bool(_INSTRUCTION.match(line)) for line in text.splitlines())


def collectives(text: str) -> Collectives:
    """Counts what the devices exchange in one run of a program."""
    entry, bodies = _computations(text)
    unconditional = _reached(entry, bodies)
    sizes: dict[bool, list[int]] = {True: [], False: []}
    others = 0
    for name, lines in bodies.items():
        for line in lines:
            if match := _REDUCED.search(line):
                sizes[name in unconditional].append(_numbers(match[1]))
            others += bool(_OTHER.search(line))
    return Collectives(
        sum(sizes[True]), sum(sizes[False]), len(sizes[True]), len(sizes[False]), others
    )


def reduced_types(text: str) -> dict[str, int]:
    """Returns how many arrays of each type of numbers, as ``f32``, all-reduces give in a program.

    One all-reduce may combine many arrays. Those in branches of conditionals count too.
    """
    found: collections.Counter[str] = collections.Counter()
    for match in _REDUCED.finditer(text):
        found.update(_TYPE.findall(match[1]))
    return dict(found)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """Returns the name of the entry, and the instructions of every computation."""
    entry, name = "", ""
    bodies: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif _INSTRUCTION.match(line):
            bodies[name].append(line)
    return entry, bodies


def _reached(entry: str, bodies: dict[str, list[str]]) -> set[str]:
    """Returns the computations that run whenever the entry runs."""
    reached, waiting = set(), [entry]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in bodies:
            continue
        reached.add(name)
        for line in bodies[name]:
            waiting += _called(line)
    return reached


def _called(line: str) -> list[str]:
    """Returns the computations that an instruction calls in any case."""
    branches = set(_BRANCHES.findall(line))
    for names in _BRANCH_LIST.findall(line):
        branches.update(_names(names))
    called: list[str] = []
    for one, several in _CALLS.findall(line):
        called += [one] if one else _names(several)
    return [name for name in called if name not in branches]


def _names(text: str) -> list[str]:
    return [name.strip().lstrip("%") for name in text.split(",") if name.strip()]


def _numbers(shapes: str) -> int:
    """Returns how many numbers a result holds, which may be a tuple."""
    sizes = _SHAPE.findall(shapes)
    return sum(math.prod(int(size) for size in dims.split(",") if size) for dims in sizes)
