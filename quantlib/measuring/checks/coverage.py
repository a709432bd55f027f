"""How many of the matrix products are quantized? (`quantlib.onnx_model.coverage` counts them.)"""

from __future__ import annotations

from quantlib.machine.engines import get_engine
from quantlib.measuring.checks.check import Check, Subject
from quantlib.onnx_model.coverage import Coverage, coverage
from quantlib.support.columns import Column, fixed


def _run(subject: Subject) -> Coverage | None:
    if not subject.quantized:
        return None
    products = get_engine(subject.engine).products
    computed = None if products is None else products(subject.onnx_path, subject.threads or 1)
    return coverage(subject.onnx_path, subject.kept, computed)


COVERAGE = Check(
    "coverage",
    Coverage,
    _run,
    (
        Column(
            "quantized_share",
            "share of the matrix products with a weight that are quantized; null for a float model",
            lambda result: result.share,
            show=fixed(1, scale=100),
            label="products in 8 bits",
            unit="%",
            heading="quantized",
            cell=lambda result: f"{result.quantized}/{result.total}",
        ),
    ),
    in_run_json=False,  # run.json lists the products that are not quantized
)
