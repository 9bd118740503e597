"""The registry of the kinds of data specs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunus.data.datasets import ArrayDataset, Augment, DataSource, split_indices
from prunus.models.registry import SpecRegistry


@dataclass(frozen=True)
class DataRequest:
    """What is asked of a data source besides its place.

    Attributes:
        validation: fraction or number of training examples held out for validation.
        seed: of that choice.
        model: spec of the model, or folder of the artifact, that the data are for; None if nobody said.
    """

    validation: float | int = 0.1
    seed: int = 0
    model: str | None = None

    def in_three_parts(
        self, name: str, learned: ArrayDataset, test: ArrayDataset, classes: int, augment: Augment | None = None
    ) -> DataSource:
        """Training data, of which the validation split is cut, and test data, which are read for the final number."""
        stays, held_out = split_indices(learned.labels, self.validation, self.seed)
        return DataSource(name, learned.subset(stays), learned.subset(held_out), test, classes, augment=augment)


DATA_SOURCES: SpecRegistry[Callable[[str, DataRequest], DataSource]] = SpecRegistry("data")
data_source = DATA_SOURCES.register
