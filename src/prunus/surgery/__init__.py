"""Removal: tensors cut, multipliers folded, captured graphs with other sizes."""
