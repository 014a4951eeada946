"""Mean IoU with the original instructions of a split and with wordings that no training sample has.

After `bananagrams demo`: `python -m bananagrams_tests.benchmarks.wording_benchmark .bananagrams/store`. All
rows use the same samples: those whose instruction can be reworded.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

from bananagrams_assets.learn import metrics
from bananagrams_assets.learn.dataset import open_split
from bananagrams_assets.learn.evaluate import derangement
from bananagrams_assets.learn.predict import load_predictor, predict_masks
from bananagrams_assets.sample.draw import COLORS
from bananagrams_assets.storage.open_store import open_store

_COLOR = f"({'|'.join(COLORS)})"
_NEW = rf"(an? {_COLOR} \w+)"
REWORDINGS = (
    (r"(?:Remove|Erase) (the .*?)(?: and fill in the background)?", r"Get rid of \1."),
    (r"Take (the .*) out of the picture", r"Get rid of \1."),
    (r"Delete (the .*), restoring what is behind it", r"Get rid of \1."),
    (r"(?:Add|Place|Put|Insert) (an? .*?)(?: of the (?:picture|image).*)?", r"I would like to see \1."),
    (rf"(?:Make|Paint) (the .*) {_COLOR}", r"Let \1 become \2."),
    (rf"(?:Change|Recolor) (?:the color of )?(the .*?)(?: to| so that it is) {_COLOR}", r"Let \1 become \2."),
    (rf"(?:Tint|Turn) the (.*?)(?: of the picture)? {_COLOR}", r"Let the \1 become \2."),
    (
        rf"(?:Replace|Swap|Exchange) (the .*) (?:with|for) {_NEW}(?: of the same size)?",
        r"Have \2 instead of \1.",
    ),
    (rf"Turn (the .*) into {_NEW}", r"Have \2 instead of \1."),
    (r"Cover the (.*) with (\w+)", r"Let there be \2 all over the \1."),
    (
        r"(?:Move|Shift|Relocate) (the .*) from the (.*) to the (.*?)(?: of the picture)?",
        r"Bring \1 over from the \2 to the \3.",
    ),
)
"""Patterns of the sample's instructions, without the full stop, and replacements in words it never uses."""


def reworded(text: str) -> str | None:
    """Return the instruction in other words, or None if no pattern matches."""
    for pattern, replacement in REWORDINGS:
        match = re.fullmatch(pattern, text.removesuffix("."))
        if match:
            return match.expand(replacement)
    return None


def main() -> None:
    """Print mean IoU and its interval for each wording."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", help="folder of a built dataset and its trained model")
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    arguments = parser.parse_args()
    store = open_store(arguments.store)
    predictor = load_predictor(Path(arguments.store) / "mask_model")
    with open_split(store, arguments.split) as split, open_split(store, "train") as train:
        train_texts = {train.text(index) for index in range(len(train))}
        texts = {index: reworded(split.text(index)) for index in range(len(split))}
        chosen = [index for index, text in texts.items() if text and text not in train_texts]
        samples = [split[index] for index in chosen]
        total = len(split)
    new_texts = [str(texts[index]) for index in chosen]
    sources = [str(sample.meta["source_id"]) for sample in samples]
    images = [sample.image for sample in samples]
    rows = {
        "as made": [sample.text for sample in samples],
        "reworded": new_texts,
        "reworded, shuffled": [new_texts[index] for index in derangement(len(new_texts))],
        "no words": [""] * len(new_texts),
    }
    print(f"{arguments.split}: {len(chosen)} of {total} samples can be reworded")
    for name, instructions in rows.items():
        counts = [
            metrics.pixel_counts(
                mask >= predictor.threshold, sample.mask.astype(bool), sample.valid.astype(bool)
            )
            for mask, sample in zip(predict_masks(predictor, images, instructions), samples, strict=True)
        ]
        ious = metrics.ious(np.array(counts, np.int64))
        low, high = metrics.mean_interval(ious, sources)
        print(f"{name}: mean IoU {ious.mean():.3f} (95% interval {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
