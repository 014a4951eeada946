"""Review files: labels that reviewers gave to masks on the overlay pages.

The format is `{"format": "bananagrams-verdicts-1", "reviewer": NAME, "samples": [{"key", "shard", "verdict",
"note"}, ...]}`; the field `verdict` holds the label `good`, `bad` or "". A sample that any reviewer labelled
`bad` is left out of its shard. `good` and notes are for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..config import Profile, digest_of
from ..progress import Log
from ..records.sources import SourceError
from ..storage.store import MissingObject, Store
from .shards import REVIEWS
from .stage import ExternalInput

FORMAT = "bananagrams-verdicts-1"
LABELS = ("good", "bad", "")
IN_STORE = "store:"
"""Prefix of a review file that lies in the store."""


class ReviewError(SourceError):
    """A review file that cannot be used. The message names the file and the fault."""


def review_input(store: Store, profile: Profile, shard: str, log: Log) -> Mapping[str, ExternalInput]:
    """Return the samples of a shard to leave out, with a digest as the version; nothing if there are none.

    Raises ReviewError, StoreError.
    """
    bad = bad_samples(store, profile.shards.reviews, shard)
    return {REVIEWS: ExternalInput(digest_of(bad), bad)} if bad else {}


def bad_samples(store: Store, files: tuple[str, ...], shard: str) -> dict[str, str]:
    """Return key → reason ("judged bad by Ann: the hat is missing") of the samples labelled bad.

    `files` are paths, or names in the store after `store:`. A label without a shard applies to every shard.
    Raises ReviewError, StoreError.
    """
    bad: dict[str, list[str]] = {}
    for name in files:
        reviewer, samples = _read(store, name)
        for number, sample in enumerate(samples, start=1):
            try:
                key, of_shard, label, note = (sample[field] for field in ("key", "shard", "verdict", "note"))
            except (KeyError, TypeError):
                raise ReviewError(f"{name}: sample {number} lacks key, shard, verdict or note") from None
            if label not in LABELS:
                raise ReviewError(f"{name}: {key}: its verdict is {label!r}; good, bad or empty is expected")
            if label == "bad" and of_shard in ("", shard):
                bad.setdefault(str(key), []).append(
                    f"judged bad by {reviewer}" + (f": {note}" if note else "")
                )
    return {key: "; ".join(reasons) for key, reasons in sorted(bad.items())}


def _read(store: Store, name: str) -> tuple[str, list[dict[str, str]]]:
    """Return the reviewer and the labelled samples of a file. Raises ReviewError."""
    try:
        if name.startswith(IN_STORE):
            text = store.read(name.removeprefix(IN_STORE))
        else:
            text = Path(name).expanduser().read_bytes()
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        if not isinstance(content["samples"], list):
            raise ValueError("`samples` is not a list")
        reviewer = str(content["reviewer"]).strip() or name.removeprefix(IN_STORE).rpartition("/")[2]
        return reviewer, content["samples"]
    except MissingObject as error:
        raise ReviewError(f"{REVIEWS}: {error}") from error
    except OSError as error:
        raise ReviewError(f"{REVIEWS}: {name}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ReviewError(f"{REVIEWS}: {name}: not a review file: {error}") from error
