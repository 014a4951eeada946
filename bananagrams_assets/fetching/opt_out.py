"""Opt-outs from machine learning in HTTP response headers."""

from __future__ import annotations

from collections.abc import Iterable

AGENT = "bananagrams"
"""Name of this crawler in headers that address crawlers by name."""

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives of X-Robots-Tag that opt out: `noai` and `noimageai` (DeviantArt, 2022), and those that
keep an image out of indexes (Google Search Central, "Robots meta tag specifications")."""

_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def opt_out(robots: Iterable[str], reservation: str | None = None) -> str | None:
    """Return the directive that opts out, or None.

    `robots` holds the values of all X-Robots-Tag headers. A value is a comma-separated list of directives;
    an `agent: ` prefix restricts the directives from there to the next prefix to one crawler. `reservation`
    is the value of TDM-Reservation (W3C TDM Reservation Protocol); 1 reserves the right to text and data
    mining.
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
