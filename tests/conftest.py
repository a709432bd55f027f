"""What is slow is made once for all tests: a tiny random BERT, its export, rows made of its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from quantlib.cache import ENVIRONMENT_VARIABLE
from quantlib.features import Feature


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of all tests; the user's own is never touched."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, str(directory))
        yield directory


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier of 2 layers with random weights and two labels. Not to be changed: copy it."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_teacher`, exported at opset 17 for 64 tokens."""
    from quantlib.export import export_bert_to_onnx

    return export_bert_to_onnx(tiny_teacher, tmp_path_factory.mktemp("onnx") / "model.onnx", seq_len=64)


@pytest.fixture(scope="session")
def tiny_rows(tiny_teacher: Path) -> list[Feature]:
    """48 labelled rows of 6 to 18 tokens."""
    return tiny.features(tiny_teacher, 48)


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with SST-2 in it: 120 train and 40 dev rows whose label can be learned."""
    return tiny.write_sst2(tmp_path_factory.mktemp("glue"))
