"""What do the training steps of large networks sum over the chips of a TPU v5e 2x2?

Run with ``python -m benchmarks.all_reduces`` in the environment that ``make bench-accelerators``
sets up.  ``benchmarks.accelerators`` counts the same in the finished program, which takes libtpu up
to an hour for a high-resolution network.  Here each step is compiled in a process of its own,
which ends as soon as XLA has combined the all-reduces: the program is then divided among the chips
and simplified, and what is left are layouts, schedules and machine code.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import hlo_text
from benchmarks.accelerator_targets import mesh, placed, prepare
from benchmarks.experiment_programs import SUBJECTS, training_step

ROOT = Path(__file__).resolve().parents[1]
TARGET, DTYPE = "v5e:2x2", "bfloat16"
COMBINED, NEXT = "*after_all-reduce-combiner*.txt", "*async_scheduling*.txt"


def compile_step(name: str, folder: Path) -> None:
    """Compiles a step, and has XLA write the program to a folder as passes change it."""
    prepare()
    step, arrays, batch = training_step(name, DTYPE, mesh(TARGET))
    with jax.default_matmul_precision("highest"):
        lowered = step.lower(placed(arrays, TARGET), placed(batch, TARGET, split=True))
    options = {
        "xla_dump_to": str(folder),
        "xla_dump_hlo_as_text": True,
        "xla_dump_hlo_pass_re": ".*all-reduce.*",
    }
    lowered.compile(compiler_options=options)  # type: ignore[arg-type]


def combined(name: str) -> str:
    """Returns the text of a step's program once its all-reduces are combined."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.all_reduces", "--compile", name, folder]
        with subprocess.Popen(command, cwd=ROOT) as process:
            # A later pass has begun, so that the files of this one are whole.
            while not any(Path(folder).glob(NEXT)) and process.poll() is None:
                time.sleep(1)
            process.kill()
        found = sorted(Path(folder).glob(COMBINED))
        if not found:
            sys.exit(f"{name} was not compiled: status {process.returncode}; see above")
        return found[-1].read_text()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(SUBJECTS), help="default: %(default)s")
    parser.add_argument("--compile", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compile:
        compile_step(arguments.compile[0], Path(arguments.compile[1]))
        return
    names = arguments.networks.split(",")
    if unknown := set(names) - set(SUBJECTS):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}")
    print("| network | all-reduces | in branches | arrays in them, by type |\n|---|---:|---:|---|")
    for name in names:
        text = combined(name)
        found = hlo_text.collectives(text)
        types = sorted(hlo_text.reduced_types(text).items())
        print(
            f"| {name} | {found.all_reduces} | {found.all_reduces_in_branches} | "
            f"{', '.join(f'{count} {kind}' for kind, count in types)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
