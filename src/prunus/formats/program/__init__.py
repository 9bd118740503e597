"""The captured program of an artifact as plain data: what may stand in it, writing and reading it."""
