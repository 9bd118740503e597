"""Multipliers on units, at the inputs of the layers that read them."""
