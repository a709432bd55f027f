"""Every check holds: no label depends on what else is in the batch, where the recipe does not make it so."""

from __future__ import annotations


def test_labels_do_not_depend_on_the_batch(quant_variant):
    quant_variant.check_batch()
