"""Kinds of units beyond channels and heads, each found from the captured graph; one file each."""
