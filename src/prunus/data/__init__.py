"""What is learned from: data sets, batches, losses, metrics."""

from prunus.data.batches import Splits, as_batches
from prunus.data.datasets import ArrayDataset, Augment, Batches, DataSource, crop_and_flip, next_tokens, split_indices
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import Evaluation, evaluate
from prunus.data.given import source_of
from prunus.data.losses import cross_entropy, own_loss
from prunus.data.metrics import ACCURACY, Metric, mean_iou
from prunus.data.reading import ReadBatches
from prunus.data.registry import DataRequest, Reading, data_source
from prunus.data.sources import load_data

__all__ = [
    "ACCURACY",
    "ArrayDataset",
    "Augment",
    "Batches",
    "DataRequest",
    "DataSource",
    "DenseOutputs",
    "Evaluation",
    "Metric",
    "ReadBatches",
    "Reading",
    "Splits",
    "as_batches",
    "crop_and_flip",
    "cross_entropy",
    "data_source",
    "evaluate",
    "load_data",
    "mean_iou",
    "next_tokens",
    "own_loss",
    "source_of",
    "split_indices",
]
