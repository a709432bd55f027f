"""The package `datasets`, which reads data sets of the hub."""

from __future__ import annotations

from typing import Any

from quantlib.support.errors import InputError


def hub_package(what: str, instead: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """The module `datasets`, and the exceptions with which it says that the hub does not give a data set.

    Args:
        what: what needs it, for the message.
        instead: what can be done without it, for the message.

    Raises:
        InputError: it is not installed.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP client
    except ImportError as error:
        raise InputError(
            f"{what} needs the package datasets: pip install 'bert-quantlib[hub]'; {instead}"
        ) from error
    # ValueError: an unknown configuration or split; offline, with other configurations in the cache.
    return datasets, (OSError, HTTPError, DatasetsError, ValueError)
