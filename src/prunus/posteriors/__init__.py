"""Distributions over what to keep: one multiplier per unit, one file per family."""
