"""Files kept by the SHA-256 of their bytes, so that a measured model can be read again."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from quantlib.support.errors import Unavailable
from quantlib.support.files import atomic_file, sha256_file
from quantlib.support.presence import note_used


@dataclass(frozen=True)
class FileStore:
    """A directory of files named by their SHA-256. suffix: of all file names, ".onnx"."""

    directory: Path
    suffix: str

    def has(self, sha256: str) -> bool:
        """Whether there is a file of that name; its bytes are checked when it is read."""
        return self._path(sha256).is_file()

    def put(self, path: Path, sha256: str) -> None:
        """Keep a file: linked where the file system can, else copied; whole or not at all.

        Raises:
            InputError: the directory cannot be written.
            Unavailable: the file has other bytes.
        """
        with atomic_file(self._path(sha256)) as scratch:
            try:
                os.link(path, scratch)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, scratch)
            if sha256_file(scratch) != sha256:
                raise Unavailable(f"{path} has other bytes than {sha256[:12]}")
        note_used(self._path(sha256))

    def get(self, sha256: str) -> Path:
        """The kept file, whose bytes have just been checked.

        Raises:
            Unavailable: it is not there, or is damaged.
        """
        kept = self._path(sha256)
        if not kept.is_file():
            raise Unavailable(f"the store has no model {sha256[:12]}")
        if sha256_file(kept) != sha256:
            raise Unavailable(f"the store's model {sha256[:12]} is damaged")
        note_used(kept)
        os.utime(kept)  # the cache removes the least recently used files first
        return kept

    def _path(self, sha256: str) -> Path:
        return self.directory / f"{sha256}{self.suffix}"
