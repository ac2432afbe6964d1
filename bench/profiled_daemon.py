"""`ruvd`'s command line with a profile of its main thread, for `bench.stream_profile`.

The first SIGALRM starts the profile. The second one ends it and writes it to the file that the
first argument names. The other arguments are those of `ruvd`.
"""

import cProfile
import signal
import sys
from pathlib import Path

from ruvd.cli import run


def main() -> int:
    """Runs a command of ruvd's and returns its exit code."""
    file, *arguments = sys.argv[1:]
    # Built-in functions count for the function that calls them.
    profile = cProfile.Profile(builtins=False)
    is_running = False

    def switch(_number: int, _frame: object) -> None:
        nonlocal is_running
        is_running = not is_running
        if is_running:
            profile.enable()
            return
        profile.disable()
        profile.dump_stats(f"{file}.part")
        Path(f"{file}.part").rename(file)  # a whole file appears at once

    signal.signal(signal.SIGALRM, switch)
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
