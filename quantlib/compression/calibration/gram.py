"""Gram matrices of activations: the second-order statistics behind pruning and rounding."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlib.compression.calibration.channels import real_positions
from quantlib.compression.calibration.stream import observing, run_batches
from quantlib.data.features import Feed
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file
from quantlib.support.gram import Gram, accumulated, moved

# So many are multiplied at once: adding up a wide matrix takes as long as multiplying a few hundred.
_POSITIONS = 1024


def collect_grams(
    onnx_path: Path,
    feeds: Iterable[Feed],
    tensors: Sequence[str],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Gram]:
    """The Gram matrix of each activation, in one pass and in memory that does not grow with the rows.

    Padded positions do not count. The products of some thousand of them, about the mean of the first ones,
    are computed in float32 and summed in float64.

    Args:
        onnx_path: the FP32 model.
        feeds: what to run, once each: arrays (rows, tokens).
        tensors: activations (rows, ..., channels), by name; at least one.
        threads: of the session and of NumPy's products; by default the physical cores, and as many as NumPy
            takes.
        progress: called after each batch with the number of its rows.

    Raises:
        InputError: as `quantlib.compression.calibration.collect`.
    """
    from threadpoolctl import threadpool_limits

    names, session = observing(onnx_path, tensors, threads)
    grams: dict[str, Gram] = {}
    points: dict[str, npt.NDArray[np.float32]] = {}
    waiting: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}

    def add(name: str) -> None:
        if waiting[name]:
            values = np.concatenate(waiting[name])
            waiting[name].clear()
            with np.errstate(over="ignore", invalid="ignore"):  # whoever uses it refuses what is not finite
                point = points.setdefault(name, values.mean(axis=0))
                grams[name] = accumulated(grams.get(name), _gram(values - point))

    with threadpool_limits(threads):
        for batch in run_batches(session, onnx_path, names, feeds, progress=progress):
            for name in names:
                what = f"{onnx_path}: activation {name}"
                real = real_positions(batch.outputs.pop(0), batch.mask, what, batch.first_row)
                waiting[name].append(real)
                if sum(map(len, waiting[name])) >= _POSITIONS:
                    add(name)
        for name in names:
            add(name)
    with np.errstate(over="ignore", invalid="ignore"):
        return {name: moved(gram, points[name]) for name, gram in grams.items()}


def _gram(values: npt.NDArray[np.float32]) -> Gram:
    """The Gram matrix of positions, (positions, channels)."""
    return Gram(len(values), values.sum(axis=0, dtype=np.float64), (values.T @ values).astype(np.float64))


def write_grams(path: Path, grams: dict[str, Gram]) -> None:
    """Write Gram matrices as an .npz file, whole or not at all."""
    arrays: dict[str, npt.NDArray[np.generic]] = {"names": np.array(list(grams), np.str_)}
    for index, gram in enumerate(grams.values()):
        arrays |= {
            f"count_{index}": np.array(gram.count),
            f"total_{index}": gram.total,
            f"products_{index}": gram.products,
        }
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_grams(path: Path) -> dict[str, Gram]:
    """Read what `write_grams` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    return dict(GramFile(path))


class GramFile(Mapping[str, Gram]):
    """The Gram matrices of a file, by name; each is read when it is asked for, and not kept.

    Those of a wide model are larger than its weights: a BERT-base's neurons take 0.9 GB.

    Raises:
        InputError: the file is missing or damaged, here or when a matrix is read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as arrays:
            self._places = {str(name): place for place, name in enumerate(arrays["names"])}

    def __getitem__(self, name: str) -> Gram:
        place = self._places[name]
        with self._open() as arrays:
            return Gram(int(arrays[f"count_{place}"]), arrays[f"total_{place}"], arrays[f"products_{place}"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def _open(self) -> Iterator[Mapping[str, Any]]:
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                yield arrays
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{self._path}: not a file of Gram matrices: {error}") from error
