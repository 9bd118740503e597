"""What the int8 export does around the tool that rewrites the graph."""

from __future__ import annotations

import logging

import pytest

from prunus.formats.int8 import _quiet


@pytest.mark.parametrize("before", [logging.NOTSET, logging.CRITICAL])
def test_the_callers_logging_is_put_back(before: int) -> None:
    logging.disable(before)
    try:
        with _quiet():
            assert logging.root.manager.disable == max(before, logging.WARNING)
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)
