"""The command line: parses, calls, and turns a user's mistake into one line."""

import io
import sys

from experiments.commands.caches import keep_compiled_programs
from experiments.commands.command_line import parsed
from experiments.commands.ending import end, in_words, is_out_of_memory, silence_libraries
from experiments.commands.memory import keep_freed_memory
from experiments.errors import CommandError


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: those after the program's name; ``sys.argv`` by default.

    Returns:
      The exit status: 0; 2 where the user asked for something impossible; 1 where the machine
      stood in the way; 130 after an interrupt; 141 where nobody reads the output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where it is ASCII, "?" instead of an error
    try:
        parsed(sys.argv[1:] if arguments is None else arguments)()
        sys.stdout.flush()  # not later, when an error would be a traceback
    except CommandError as error:
        return end(f"error: {error}", error.status)
    except BrokenPipeError:
        return end("", 141)
    except (OSError, FloatingPointError, MemoryError) as error:
        return end(f"error: {in_words(error)}", 1)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return end(f"error: {in_words(error)}; a smaller batch needs less", 1)
    except KeyboardInterrupt:
        return end("\nstopped; the same command goes on where it was", 130)
    return 0


if __name__ == "__main__":
    silence_libraries()
    keep_compiled_programs()
    keep_freed_memory()
    sys.exit(main())
