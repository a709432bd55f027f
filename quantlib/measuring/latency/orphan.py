"""A timing process that outlives nobody: it ends when the process that started it is gone.

Between commands it sees the end of its stdin. In a command it may load a large model or run it for minutes,
beside whatever is measured next. So a thread waits for the other end of stdin to close; it costs nothing,
since it sleeps in the system.

Nothing of quantlib is imported here: processes that run older code load this file by its path.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time

_GRACE_SECONDS = 1.0  # a process that only waits for commands ends by itself


def end_with_parent() -> None:
    """Start the thread; nothing happens on Windows, which cannot wait for the end of a pipe."""
    if sys.platform != "win32":
        threading.Thread(target=_wait, daemon=True, name="orphan").start()


def _wait() -> None:
    other_end = select.poll()
    other_end.register(0, 0)  # neither to read nor to write: only that it closes
    other_end.poll()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    end_with_parent()
    from quantlib.measuring.latency.worker import main

    main()
