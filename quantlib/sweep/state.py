"""What a sweep keeps of the jobs that are done, so that one that was interrupted goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlib.support.errors import InputError
from quantlib.support.files import sha256_json, write_json
from quantlib.support.parsing import parse_json_text, read_utf8
from quantlib.support.typed import WrongValue, parse_values
from quantlib.sweep.graph import Job
from quantlib.sweep.work import Outcome

SCHEMA_VERSION = 1
FOLDER = "jobs"


@dataclass(frozen=True)
class Done:
    """The outcomes of jobs, a file each, in a folder of the sweep's results."""

    directory: Path

    def read(self, job: Job) -> Outcome | None:
        """What a job gave; None if it is not done, not for all of its cells, or its file is damaged."""
        try:
            record = parse_json_text(read_utf8(self._path(job)))
            value = record["outcome"]
            if record["schema_version"] != SCHEMA_VERSION or record["sha256"] != sha256_json(value):
                return None
            outcome = parse_values(Outcome, value)
        except (OSError, ValueError, KeyError, TypeError, WrongValue, InputError):
            return None  # missing or damaged: both are done again
        return outcome if {cell.variant for cell in job.cells} <= set(outcome.rows) else None

    def write(self, job: Job, outcome: Outcome) -> None:
        """Keep what a job gave.

        Raises:
            InputError: the directory cannot be written.
        """
        value: dict[str, Any] = asdict(outcome)
        value = json.loads(json.dumps(value))  # as it is read: lists for tuples
        record = {"schema_version": SCHEMA_VERSION, "job": job.name, "key": job.key}
        write_json(self._path(job), record | {"sha256": sha256_json(value), "outcome": value})

    def _path(self, job: Job) -> Path:
        # In folders, since a file is written after a look at all that lies beside it.
        return self.directory / FOLDER / job.key[:2] / f"{job.key[2:24]}.json"
