"""How the reference reads docstrings: a section `Example` holds examples, as one that is called `Examples` does."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Docstrings(Extension):
    """Renames the section before griffe parses it; it would take it for a remark, and `>>>` for a quotation."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called once for every object that was read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
