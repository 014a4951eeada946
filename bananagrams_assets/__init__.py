"""bananagrams: a Dagster asset graph from photo edits to edit masks, and a model that predicts them."""

__version__ = "0.1.0"
