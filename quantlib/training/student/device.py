"""Where a student is trained, and how precisely its products are computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.data.features import Feature, pad
from quantlib.support.errors import InputError
from quantlib.training.student.options import DistillationOptions
from quantlib.training.student.precision import bfloat16_pays
from quantlib.training.teacher import make_repeatable

if TYPE_CHECKING:
    import torch


def prepare(options: DistillationOptions) -> torch.device:
    """The device of `options`; also makes torch repeatable: seeds, thread count, deterministic kernels.

    Raises:
        InputError: there is no such device.
    """
    import torch

    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"device {name!r} cannot be used: {reason}") from error
    # cuBLAS is deterministic with this workspace only; it is read when the first product is computed.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    make_repeatable(options.seed, options.threads)
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Compute the block's products in bfloat16 if asked to, or by default where that is faster."""
    import torch

    in_bfloat16 = precision == "bfloat16" or (precision == "auto" and bfloat16_pays(device.type))
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16)


def feed_of(features: Sequence[Feature], index: np.ndarray[Any, Any], device: torch.device) -> Any:
    """A padded batch of the rows `index` on a device: {input name: int64 (rows, tokens)}."""
    import torch

    rows = [features[i] for i in index]
    return {k: torch.from_numpy(v).to(device) for k, v in pad(rows, max(map(len, rows))).items()}
