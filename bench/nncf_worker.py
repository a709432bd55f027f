"""The half of `peers_accuracy.py` that runs in the peers' environment: OpenVINO's NNCF.

    nncf_worker.py quantize MODEL.onnx FEEDS.npz OUT.xml RANGES
    nncf_worker.py predict MODEL.xml FEEDS.npz OUT.npz THREADS

FEEDS.npz holds feeds as `0.input_ids`, `0.attention_mask`, ..., `1.input_ids`, ...; OUT.npz holds the logits
of each feed as `0`, `1`, ... RANGES is `default`, or a name in NNCF's `RangeEstimatorParametersSet`. A line
on stdout says that one more feed was run; all else that is printed goes to stderr. Nothing of quantlib is
imported here: that environment has none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import nncf  # type: ignore[import-not-found]
import numpy as np
import openvino  # type: ignore[import-not-found]
from nncf.quantization import range_estimator  # type: ignore[import-not-found]

Feeds = list[dict[str, Any]]


def read_feeds(path: str) -> Feeds:
    feeds: dict[int, dict[str, Any]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, name = key.split(".", 1)
            feeds.setdefault(int(number), {})[name] = arrays[key]
    return [feeds[number] for number in sorted(feeds)]


def accepted(model: Any, feeds: Feeds) -> Feeds:
    """The part of each feed that the model takes: DistilBERT has no token types."""
    names = {name for node in model.inputs for name in node.get_names()}
    return [{name: array for name, array in feed.items() if name in names} for feed in feeds]


def quantize(model_path: str, feeds: Feeds, out_path: str, ranges: str, done: Callable[[], None]) -> None:
    """NNCF's defaults for transformers, but for the ranges of activations; calibrated on every feed."""
    advanced = None
    if ranges != "default":
        estimator = getattr(range_estimator.RangeEstimatorParametersSet, ranges)
        advanced = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=estimator)
    model = openvino.Core().read_model(model_path)

    def next_feed(feed: dict[str, Any]) -> dict[str, Any]:
        done()
        return feed

    rows = nncf.Dataset(accepted(model, feeds), next_feed)
    quantized = nncf.quantize(
        model,
        rows,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
        advanced_parameters=advanced,
    )
    openvino.save_model(quantized, out_path)


def predict(model_path: str, feeds: Feeds, out_path: str, threads: str, done: Callable[[], None]) -> None:
    """The logits of the file as it was saved, computed in float32 where it is not in 8 bits."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": int(threads)}
    compiled = openvino.Core().compile_model(model_path, "CPU", settings)
    named = any("logits" in output.get_names() for output in compiled.outputs)
    logits_output = compiled.output("logits") if named else compiled.output(0)
    request, outputs = compiled.create_infer_request(), {}
    for number, feed in enumerate(accepted(compiled, feeds)):
        outputs[str(number)] = np.array(request.infer(feed)[logits_output])
        done()
    np.savez(out_path, allow_pickle=False, **outputs)


def main() -> None:
    # The libraries print to stdout too; the lines that are counted need a stream of their own.
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    what, model_path, feeds_path, out_path, setting = sys.argv[1:]
    work = {"quantize": quantize, "predict": predict}[what]
    work(model_path, read_feeds(feeds_path), out_path, setting, lambda: print(file=stdout, flush=True))


if __name__ == "__main__":
    main()
