"""How results show themselves: one line as `repr`, the whole text as `str`, and the same text in a notebook."""

from __future__ import annotations

from abc import abstractmethod
from html import escape


class Shown:
    """Base of results that people look at. Dataclasses that use it are made with `repr=False`."""

    @abstractmethod
    def line(self) -> str:
        """What it is, in one line without the name of its class."""

    @abstractmethod
    def explain(self) -> str:
        """All that a reader needs, as text of fixed width."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.line()}>"

    def __str__(self) -> str:
        return self.explain()

    def _repr_html_(self) -> str:
        """The line, and under it the text; what notebooks show."""
        text = f'<pre style="line-height: 1.2">{escape(self.explain())}</pre>'
        return f"<details open><summary>{escape(repr(self)[1:-1])}</summary>{text}</details>"
