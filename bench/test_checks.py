"""Every check holds: no label depends on what else is in the batch, where the recipe does not make it so."""

from __future__ import annotations

import pytest


def test_labels_do_not_depend_on_the_batch(candidate, checks, record_property):
    found = checks[candidate.name]
    for name, value in found.values().items():
        record_property(name, value)
    # A dynamic recipe takes its ranges from the batch, so its labels may; the property tells how many.
    dynamic = candidate.recipe is not None and candidate.recipe.mode == "dynamic"
    if found.failed(dynamic=dynamic):
        pytest.fail(f"{candidate.name}: {found.note}", pytrace=False)
