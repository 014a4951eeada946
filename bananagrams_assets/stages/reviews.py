"""Verdicts of people on masks, as the overlay pages save them: who judged which sample good or bad.

A file: `{"format": "bananagrams-verdicts-1", "reviewer": NAME, "samples": [{"key", "shard", "verdict",
"note"}, ...]}`. A sample that anyone judged bad is left out of its shard; `good` and notes are for people.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..config import Profile, digest_of
from ..records.sources import SourceError
from ..storage.store import MissingObject, Store

FORMAT = "bananagrams-verdicts-1"
IN_STORE = "store:"
"""Before the name of a file in the store, where a path is expected."""


class VerdictError(SourceError):
    """A file of verdicts that cannot be used; the message names it and what is wrong."""


def judged_bad(store: Store, profile: Profile, shard: str) -> dict[str, str]:
    """Key → reason ("judged bad by Ann: the hat is missing") of a shard's samples to leave out.

    A verdict that names no shard holds in any. Raises VerdictError, StoreError.
    """
    bad: dict[str, list[str]] = {}
    for name in profile.shards.verdicts:
        reviewer, samples = _read(store, name)
        for number, sample in enumerate(samples, start=1):
            try:
                key, at, verdict, note = (sample[field] for field in ("key", "shard", "verdict", "note"))
            except (KeyError, TypeError):
                raise VerdictError(f"{name}: sample {number} lacks key, shard, verdict or note") from None
            if verdict not in ("good", "bad", ""):
                raise VerdictError(f"{name}: {key}: the verdict is {verdict!r}; good or bad is expected")
            if verdict == "bad" and at in ("", shard):
                bad.setdefault(str(key), []).append(
                    f"judged bad by {reviewer}" + (f": {note}" if note else "")
                )
    return {key: "; ".join(reasons) for key, reasons in sorted(bad.items())}


def verdicts_version(store: Store, profile: Profile, shard: str) -> str:
    """16 hex digits over what `judged_bad` says of a shard; "" where it says nothing."""
    bad = judged_bad(store, profile, shard) if profile.shards.verdicts else {}
    return digest_of(bad) if bad else ""


def _read(store: Store, name: str) -> tuple[str, list[dict[str, str]]]:
    try:
        if name.startswith(IN_STORE):
            text = store.read(name.removeprefix(IN_STORE))
        else:
            text = Path(name).expanduser().read_bytes()
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        if not isinstance(content["samples"], list):
            raise ValueError("`samples` is no list")
        reviewer = str(content["reviewer"]).strip() or name.removeprefix(IN_STORE).rpartition("/")[2]
        return reviewer, content["samples"]
    except MissingObject as error:
        raise VerdictError(f"shards.verdicts: {error}") from error
    except OSError as error:
        raise VerdictError(f"shards.verdicts: {name}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise VerdictError(f"shards.verdicts: {name}: not a file of verdicts: {error}") from error
