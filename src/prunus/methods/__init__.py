"""The papers: one method, one file. None of them walks a graph."""
