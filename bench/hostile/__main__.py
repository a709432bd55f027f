"""`python -m bench.hostile`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .formats import FORMATS, ROOT
from .trying import GOOD, Outcome, Seeds, try_many, try_one

_SHOWN_CHARACTERS = 1500


def make_seeds(directory: Path) -> Seeds:
    """A tiny classifier of random weights, its ONNX file, and a run on it; nothing is downloaded."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    from quantlib import export_bert_to_onnx
    from quantlib.experiment import run

    checkpoint = tiny.write_checkpoint(directory / "checkpoint")
    model = directory / "model" / "model.onnx"
    export_bert_to_onnx(checkpoint, model, seq_len=32)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "config.json"):
        (model.parent / name).write_bytes((checkpoint / name).read_bytes())
    options = tiny.run_options(checkpoint, tiny.write_sst2(directory / "glue"))
    options = replace(options, output_dir=directory / "runs", cache_dir=directory / "cache")
    run(replace(options, no_student=True, recipes=("quant_2", "dynamic_u8s8")))
    baseline = ROOT / "bench" / "baseline" / "BBC-News.json"
    return Seeds(checkpoint, model, directory / "runs" / "SST-2", baseline)


def cli(arguments: Sequence[str] | None = None) -> int:
    """Try files and print what came of them; 1 if something happened that may not."""
    parser = argparse.ArgumentParser(description="Hostile files, see the package's docstring.")
    parser.add_argument("--count", type=int, default=1000, help="files of each form")
    parser.add_argument("--formats", default=",".join(FORMATS), help="some of them, parted by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the file of this number alone, in this process")
    parser.add_argument("--seeds", type=Path, help="keep the good files there, or take them from there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.seeds or Path(scratch)
        seeds = make_seeds(directory) if not (directory / "runs").is_dir() else _seeds_of(directory)
        bad = 0
        for name in options.formats.split(","):
            start = time.perf_counter()
            if options.only is not None:
                outcomes = [try_one(name, FORMATS[name], seeds, options.only, options.seed)]
                print(outcomes[0].result, outcomes[0].words)
                continue
            outcomes = list(try_many(name, FORMATS[name], seeds, range(options.count), options.seed))
            bad += _show(name, outcomes, time.perf_counter() - start)
    return 1 if bad else 0


def _seeds_of(directory: Path) -> Seeds:
    return Seeds(
        directory / "checkpoint", directory / "model" / "model.onnx", directory / "runs" / "SST-2",
        ROOT / "bench" / "baseline" / "BBC-News.json",
    )  # fmt: skip


def _show(name: str, outcomes: Sequence[Outcome], seconds: float) -> int:
    """One line for a form, and what may not happen, each kind once."""
    counts = Counter(outcome.result for outcome in outcomes)
    words = ", ".join(f"{count} {result}" for result, count in counts.most_common())
    print(f"{name:<18} {len(outcomes)} in {seconds:.0f} s: {words}", flush=True)
    kinds: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.result not in GOOD:
            last = outcome.words.strip().splitlines()[-1:] or [""]
            kinds.setdefault(f"{outcome.result} {last[0][:60]}", []).append(outcome)
    for alike in kinds.values():
        numbers = ", ".join(str(outcome.number) for outcome in alike[:8])
        print(f"--- {name} {alike[0].result}, {len(alike)} times: {numbers}")
        print(alike[0].words[-_SHOWN_CHARACTERS:])
    return sum(map(len, kinds.values()))


if __name__ == "__main__":
    sys.exit(cli())
