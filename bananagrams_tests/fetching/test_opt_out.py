from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.fetching.opt_out import opt_out


@pytest.mark.parametrize(
    "values",
    [
        ["noai"], ["noimageai"], ["noindex"], ["NoIndex, nofollow"], ["nofollow,noai"], ["none"],
        ["all", "noimageindex"], ["*: noai"], ["bananagrams: noindex"],
        ["otherbot: nofollow, bananagrams: noai"],
        ["unavailable_after: 25 Jun 2030 15:00:00 GMT, noai"], ["max-snippet: 20, noindex"],
    ],
)  # fmt: skip
def test_directives_that_opt_out(values: list[str]) -> None:
    assert opt_out(values)


@pytest.mark.parametrize(
    "values",
    [
        [], [""], ["all"], ["nofollow"], ["googlebot: noindex"], ["otherbot: noindex, nofollow"],
        ["nosnippet, noarchive"], ["max-image-preview: none"], ["otherbot: noai, bananagrams: all"],
    ],
)  # fmt: skip
def test_directives_that_do_not_opt_out(values: list[str]) -> None:
    assert opt_out(values) is None


def test_a_tdm_reservation_opts_out() -> None:
    assert opt_out([], "1") == "TDM-Reservation: 1"
    assert opt_out([], "0") is None


@given(st.lists(st.text()), st.none() | st.text())
def test_any_header_value_is_parsed(values: list[str], reservation: str | None) -> None:
    directive = opt_out(values, reservation)
    assert directive is None or ":" in directive
