"""CIFAR-10 from its binary files."""

from __future__ import annotations

from pathlib import Path

from prunus.data.datafiles import read_cifar10
from prunus.data.datasets import ArrayDataset, DataSource, crop_and_flip
from prunus.data.registry import DataRequest, data_source

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@data_source("cifar10", form="cifar10:DIR", help="the folder of the binary version; cropped and mirrored in training")
def cifar10(folder: str, asked: DataRequest) -> DataSource:
    """CIFAR-10. Raises DataError where a file is missing or damaged."""
    learned, tested = read_cifar10(Path(folder))
    train, test = (ArrayDataset(*part, MEAN, STD) for part in (learned, tested))
    return asked.in_three_parts("cifar10", train, test, 10, crop_and_flip)
