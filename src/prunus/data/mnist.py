"""MNIST and Fashion-MNIST from their idx files."""

from __future__ import annotations

from pathlib import Path

from prunus.data.datafiles import read_idx_pair
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.data.registry import DataRequest, data_source

MNIST, FASHION = ((0.1307,), (0.3081,)), ((0.2860,), (0.3530,))
"""Mean and standard deviation of the training images, scaled to 0..1."""


@data_source("mnist", form="mnist:DIR", help="the folder of the idx files, gzipped or not")
def mnist(folder: str, asked: DataRequest) -> DataSource:
    """MNIST. Raises DataError where a file is missing or damaged."""
    return _idx("mnist", folder, asked, MNIST)


@data_source("fashion-mnist", form="fashion-mnist:DIR", help="the same of Fashion-MNIST")
def fashion_mnist(folder: str, asked: DataRequest) -> DataSource:
    """Fashion-MNIST. Raises DataError where a file is missing or damaged."""
    return _idx("fashion-mnist", folder, asked, FASHION)


def _idx(
    name: str, folder: str, asked: DataRequest, constants: tuple[tuple[float, ...], tuple[float, ...]]
) -> DataSource:
    train, test = (ArrayDataset(*read_idx_pair(Path(folder), split), *constants) for split in ("train", "t10k"))
    return asked.in_three_parts(name, train, test, 10)
