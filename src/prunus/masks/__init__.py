"""Masks inside weights: exactly k of n, drawn without replacement."""
