"""Every check holds: no label depends on what else is in the batch, where the recipe does not make it so."""

from __future__ import annotations

import pytest


def test_labels_do_not_depend_on_the_batch(candidate, checks, record_property):
    results = checks[candidate.name]
    for name, value in results.values().items():
        record_property(name, value)
    # A dynamic recipe takes its ranges from the batch, so its labels may; the property tells how many.
    dynamic = candidate.recipe is not None and candidate.recipe.mode == "dynamic"
    if results.failed(dynamic=dynamic):
        pytest.fail(f"{candidate.name}: {results.note}", pytrace=False)
