"""Suppression of Avalanche's own deprecation warnings, which users cannot fix."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def without_avalanches_own_warnings() -> Generator[None]:
    """Hide Avalanche's warnings about its own deprecated calls.

    Avalanche resets the filter before each of these warnings, so only their display can be changed.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def only_others(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
            if not (issubclass(category, DeprecationWarning) and "avalanche" in Path(filename).parts):
                show(message, category, filename, *rest)

        warnings.showwarning = only_others  # type: ignore[assignment]
        yield
