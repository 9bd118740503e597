"""The data and trained networks that options name; where a smoke run is given none, tiny ones made here."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from nets import CifarResNet, load_checkpoint
from options import smoking
from prunus.data.cifar10 import MEAN, STD
from prunus.data.datasets import ArrayDataset, Augment, DataSource, crop_and_flip
from prunus.data.mnist import MNIST
from prunus.data.sources import load_data
from prunus.methods.base import Method

TRAIN, HELD_OUT = 48, 16
M = TypeVar("M", bound=Method)


def cifar10(args: argparse.Namespace) -> DataSource:
    """CIFAR-10 from `--data`, 5,000 of its training images held out."""
    if args.data is None:
        return noise("cifar10", (3, 32, 32), MEAN, STD, crop_and_flip)
    return load_data(f"cifar10:{args.data}", validation=5000, seed=0)


def mnist(args: argparse.Namespace) -> DataSource:
    """MNIST from `--data`, 5,000 of its training images held out."""
    if args.data is None:
        return noise("mnist", (1, 28, 28), *MNIST)
    return load_data(f"mnist:{args.data}", validation=5000, seed=0)


def noise(
    name: str,
    shape: tuple[int, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    augment: Augment | None = None,
) -> DataSource:
    """Images of noise with random labels, in the three parts of a data set."""
    stream = torch.Generator().manual_seed(0)

    def part(count: int) -> ArrayDataset:
        images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=stream)
        return ArrayDataset(images, torch.randint(0, 10, (count,), generator=stream), mean, std)

    return DataSource(name, part(TRAIN), part(HELD_OUT), part(HELD_OUT), 10, augment=augment)


def brief(method: M) -> M:
    """A method of few steps in a smoke run, itself otherwise."""
    return replace(method, min_steps=2) if smoking() and hasattr(method, "min_steps") else method


def resnet(depth: int, args: argparse.Namespace) -> nn.Module:
    """The network of `--weights`, in eval mode; without them one of eight layers that has learned nothing."""
    if args.weights is None:
        return CifarResNet(8).eval()
    return load_checkpoint(CifarResNet(depth), args.weights).eval()
