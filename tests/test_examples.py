"""Every public name shows an example in its docstring; `pytest --doctest-modules src` runs them."""

from __future__ import annotations

import inspect

import pytest

import prunus
from prunus.data import evaluate
from prunus.recovery import finetune

OLD = {"fit_masks", "sparsify"}
"""Deprecated: they show what to write instead."""
RESULTS = {"Comparison", "Evaluation", "Result"}
METHODS = {"DirichletPruning", "DynamicProbabilisticPruning", "RecursiveBayesianPruning"}
"""Their cards are the docstrings of their modules."""
TAKES_TRANSFORMERS = {"save_pretrained"}
SHOWN = [
    name
    for name in prunus.__all__
    if not name.startswith("_") and name not in OLD | RESULTS | METHODS | TAKES_TRANSFORMERS
]


THINGS = {name: getattr(prunus, name) for name in SHOWN} | {"evaluate": evaluate, "finetune": finetune}


@pytest.mark.parametrize("thing", THINGS.values(), ids=THINGS)
def test_a_public_name_shows_an_example_that_runs(thing: object) -> None:
    text = inspect.getdoc(thing) or ""
    assert "\nExample:\n    >>> " in text
    assert "+SKIP" not in text
