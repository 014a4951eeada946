"""Whether a server asks that what it serves is not used for machine learning."""

from __future__ import annotations

from collections.abc import Iterable

AGENT = "bananagrams"
"""Our name where a header addresses crawlers by name."""

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives of X-Robots-Tag that opt out: `noai` and `noimageai` (DeviantArt, 2022), and those that
keep a picture out of indexes (Google Search Central, "Robots meta tag specifications")."""

_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def opt_out(robots: Iterable[str], reservation: str | None = None) -> str | None:
    """The directive that opts out, or None.

    `robots` are the values of all X-Robots-Tag headers: directives with commas between them, after an
    optional `agent: ` that says whom they address, until the next one does. `reservation` is that of
    TDM-Reservation (W3C TDM Reservation Protocol), where 1 reserves the right to text and data mining.
    """
    for value in robots:
        addressed = True
        for part in value.split(","):
            name, colon, rest = part.strip().lower().partition(":")
            directive = name.strip()
            if colon and directive not in _WITH_VALUE:
                addressed = directive in ("*", AGENT)
                directive = rest.strip()
            if addressed and directive in OPT_OUT:
                return f"X-Robots-Tag: {directive}"
    return "TDM-Reservation: 1" if reservation is not None and reservation.strip() == "1" else None
