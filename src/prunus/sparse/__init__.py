"""Condensed layers: exactly k weights per output, stored as values and indices."""
