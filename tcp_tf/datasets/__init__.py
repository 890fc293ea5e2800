"""Data sets that ship with the project: `scenes`, drawn pictures whose true swaps and true region edits are known."""
