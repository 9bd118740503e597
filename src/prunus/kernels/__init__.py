"""Compiled loops (numba, Triton). Imported only where they are asked for."""
