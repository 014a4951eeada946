"""Run the command as `python -m bananagrams_assets.cli`."""

from . import main

main()
