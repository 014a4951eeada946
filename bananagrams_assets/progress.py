"""Progress lines that a plain function reports to its caller."""

from __future__ import annotations

from collections.abc import Callable

Log = Callable[[str], None]
"""Takes one line of progress, without a newline."""


def ignore_progress(line: str) -> None:
    """Discard a line of progress."""
