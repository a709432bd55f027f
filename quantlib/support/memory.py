"""Memory that a step has freed goes back to the system, not into the next step's peak."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Growth, in bytes, that is worth a search for garbage: with PyTorch loaded that takes 0.2 s.
_MUCH = 1 << 27


@contextmanager
def giving_back() -> Iterator[None]:
    """At the end of the block, give freed memory back to the system if the process has grown much in it.

    Graphs of onnx_ir refer to themselves, so they stay until Python looks for garbage; glibc keeps what is
    freed between blocks that are in use. After the export of a BERT-base, that is 1 GB. Without glibc, only
    garbage is freed.
    """
    before = resident_bytes()
    yield
    if resident_bytes() - before > _MUCH:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def resident_bytes() -> int:
    """The memory of this process, mapped files included."""
    import psutil

    return int(psutil.Process().memory_info().rss)
