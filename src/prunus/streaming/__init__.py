"""Models of like layers that are never whole in memory: their layers found, loaded, repaired and cut one at a time."""
