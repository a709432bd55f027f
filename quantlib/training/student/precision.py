"""Whether a student is trained in bfloat16: where a short measurement says that it is clearly faster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.machine.hardware import describe
from quantlib.support.cache import Cache, code_key, versions_key
from quantlib.support.files import write_json
from quantlib.training.forward import run_layer

if TYPE_CHECKING:
    import torch

_BFLOAT16_SETS = frozenset({"amx_bf16", "avx512_bf16"})
# Above the difference of two equal measurements (some 5 %), and below what AMX wins (half of the time).
_MARGIN = 1.2
_ROUNDS = 5
_FILE = "precision.json"


@cache
def bfloat16_pays(device_type: str) -> bool:
    """Whether products in bfloat16 are faster: on a CUDA device, and on a CPU that measures so.

    Only CPUs with instructions for it are measured, with torch's number of threads, once a process.
    """
    if device_type != "cpu":
        return device_type == "cuda"
    return bool(_BFLOAT16_SETS & set(describe().instruction_sets)) and faster_in_bfloat16(layer_steps())


def chosen_precision(threads: int, cache: Cache) -> str:
    """ "bfloat16" or "float32", as this machine measured it once; the choice is kept in the cache.

    It is kept for a CPU model, so a noisy moment of a later run does not train another student.

    Args:
        threads: CPU threads of the training.
        cache: where it is kept.
    """
    machine = describe()
    if not _BFLOAT16_SETS & set(machine.instruction_sets):
        return "float32"

    def measure(directory: Path) -> None:
        import torch

        torch.set_num_threads(threads)
        choice = "bfloat16" if faster_in_bfloat16(layer_steps()) else "float32"
        write_json(directory / _FILE, {"precision": choice})

    key = {
        "cpu": machine.cpu_model,
        "instruction_sets": machine.instruction_sets,
        "threads": threads,
        "versions": versions_key("torch"),
        "code": code_key(measure),
    }
    entry = cache.get("precision", key, measure)
    return str(json.loads((entry.path / _FILE).read_text(encoding="utf-8"))["precision"])


def faster_in_bfloat16(
    step: Callable[[bool], object], clock: Callable[[], float] = time.perf_counter
) -> bool:
    """Whether `step(True)`, in bfloat16, takes clearly less time than `step(False)`.

    They take turns, and the least time of each counts: other programs only ever add to it.
    """
    fastest_s: dict[bool, float] = {}
    for round_number in range(_ROUNDS + 1):
        for in_bfloat16 in (False, True):
            start = clock()
            step(in_bfloat16)
            seconds = clock() - start
            if round_number:  # the first round warms up
                fastest_s[in_bfloat16] = min(seconds, fastest_s.get(in_bfloat16, seconds))
    return fastest_s[False] > _MARGIN * fastest_s[True]


def layer_steps() -> Callable[[bool], None]:
    """A layer of a MiniLM, forward and backward on 16 rows of 128 tokens, in bfloat16 if asked."""
    import torch
    import transformers
    from transformers.models.bert.modeling_bert import BertLayer

    shape = transformers.BertConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=12)
    with torch.random.fork_rng(devices=[]):  # a training that has begun keeps its random numbers
        layer = BertLayer(shape).eval()
    hidden = torch.ones(16, 128, 384, requires_grad=True)

    def step(in_bfloat16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            output: torch.Tensor = run_layer(layer, hidden, None)[0]
        output.float().sum().backward()  # type: ignore[no-untyped-call]

    return step
