"""Layers that are alike are traced once. Tracing is slow: a file of its own lets another worker take it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny

from quantlib.onnx_model import export
from quantlib.onnx_model.export import check_parity
from quantlib.onnx_model.export.layers import find_stack
from quantlib.onnx_model.export.naming import name_nodes, strip_notes
from quantlib.training.checkpoints import load_classifier


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A classifier of four or five layers, of which three are traced; a whole trace takes seconds a layer."""
    kind = request.param
    layers = {"n_layers" if kind == "distilbert" else "num_hidden_layers": 5 if kind == "bert" else 4}
    return load_classifier(tiny.write_checkpoint(tmp_path_factory.mktemp("deep") / kind, kind, **layers))


def test_repeated_layers_are_those_of_a_whole_trace(deep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = strip_notes(name_nodes(export._to_onnx(deep, 64)))
    traced = []

    def counted(
        model: Any, longest: int, output: str, trace: Callable[..., Any] = export._to_onnx
    ) -> onnx.ModelProto:
        traced.append(find_stack(model))
        return trace(model, longest, output)

    monkeypatch.setattr(export, "_to_onnx", counted)
    repeated = export._whole_graph(deep, 64)
    assert traced == [None], "once, and without the layers to repeat"
    stack = find_stack(deep)
    assert stack is not None
    assert len(stack.layers) == deep.config.num_hidden_layers, "the model is as before"
    assert repeated.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def equal_biases(model: Any) -> None:
    """As a model that was never trained has them: the exporter keeps one of equal weights."""
    for name, parameter in model.bert.encoder.layer.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()


def other_activation(model: Any) -> None:
    import torch

    model.bert.encoder.layer[2].intermediate.intermediate_act_fn = torch.nn.Tanh()


@pytest.mark.parametrize(("change", "layers"), [(equal_biases, 3), (other_activation, 4)])
def test_layers_that_differ_are_all_traced(
    change: Callable[[Any], None], layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_classifier(tiny.write_checkpoint(tmp_path / "deep", num_hidden_layers=4))
    change(model)
    traced = []

    def counted(
        model: Any, longest: int, output: str, trace: Callable[..., Any] = export._to_onnx
    ) -> onnx.ModelProto:
        traced.append(len(model.bert.encoder.layer))
        return trace(model, longest, output)

    monkeypatch.setattr(export, "_to_onnx", counted)
    onnx.save(export._whole_graph(model, 64), tmp_path / "model.onnx")
    assert traced == [layers]
    assert check_parity(model, tmp_path / "model.onnx", 64) < 1e-5
