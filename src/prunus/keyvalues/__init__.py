"""Key-value groups of grouped queries, merged: every query head stays, and several read the same keys and values."""
