"""Other processes, for tests of files that they share, and of files that killed ones leave."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def default_signals() -> None:
    """For `preexec_fn`: heed Ctrl-C, also where the tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def other_process(code: str, *arguments: Path) -> Iterator[None]:
    """A process that has run `code` up to a call of `wait()` in it; it is killed at the end of the block."""
    code = f"import sys\ndef wait():\n    print('there', flush=True)\n    sys.stdin.read()\n{code}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        try:
            yield
        finally:
            process.kill()
