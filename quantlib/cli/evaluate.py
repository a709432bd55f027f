"""`quantlib evaluate`: one model's metrics."""

from __future__ import annotations

from collections.abc import Callable

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.parameters import offering
from quantlib.cli.words import Json, Model
from quantlib.experiment.task_options import MeasuringOptions
from quantlib.support.progress import Steps


def command() -> Callable[..., None]:
    """The command, with a parameter for each option of the rows."""
    return offering(MeasuringOptions, evaluate)


def evaluate(options: MeasuringOptions, model: Model, json: Json = False) -> None:
    """Score an ONNX model on rows with labels: the task's metrics, and the loss.

    Example: quantlib evaluate tickets.onnx --evaluation test.csv --label category
    """
    from quantlib.experiment.comparing import evaluate_model

    out = wide_console()
    evaluation, rows = evaluate_model(model, options, Steps(None if json else out))
    if json:
        print_json(
            {
                "model": str(model),
                "rows": len(rows.splits.evaluation),
                **evaluation.metrics,
                "eval_loss": evaluation.eval_loss,
                "notes": list(rows.notes),
            }
        )
        return
    for name, value in evaluation.metrics.items():
        print(f"{name} {value:.4f}")
    if evaluation.eval_loss is not None:
        print(f"loss {evaluation.eval_loss:.4f}")
