"""Data in memory: data sets, their three parts, and fast batches that shard over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.data.losses import IGNORED, cross_entropy
from prunus.errors import ConfigError, DataError
from prunus.runtime.fields import allows

Augment = Callable[[Tensor, torch.Generator], Tensor]
Inputs = Tensor | Mapping[str, Tensor]
KINDS = (torch.uint8, torch.float32, torch.int64)


@dataclass(frozen=True)
class ArrayDataset:
    """Inputs and labels in memory; usable with `Batches` and with torch's DataLoader.

    Attributes:
        inputs: uint8 images [N, C, H, W] (0..255, scaled to 0..1 on the way out); float32 or int64 (token ids)
            [N, ...], taken as they are; or a dict of such tensors, which the model gets as keyword arguments.
        labels: int64 [N], or one per position [N, T] with -100 where none is judged.
        mean: per channel (dimension 1), subtracted after scaling; one value serves all channels. Not for dicts.
        std: per channel, divided by.

    Raises:
        DataError: shapes or dtypes that do not fit.
    """

    inputs: Inputs
    labels: Tensor
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        named = self.inputs if isinstance(self.inputs, Mapping) else {"inputs": self.inputs}
        for name, tensor in named.items():
            if tensor.dim() < 1 or tensor.dtype not in KINDS or (tensor.dtype == torch.uint8 and tensor.dim() != 4):
                what = f"found {tensor.dtype} {list(tensor.shape)}"
                raise DataError(name, what, "give uint8 images [N, C, H, W], or float32 or int64 [N, ...]")
            if len(tensor) != len(self.labels):
                what = f"{len(tensor)} for {len(self.labels)} labels"
                raise DataError(name, what, "give one row per example, and one label for each of them")
        if self.labels.dim() not in (1, 2, 3) or self.labels.dtype != torch.int64:
            what = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise DataError("labels", f"found {what}", "give one int64 label per example, or per position of each")
        if self._plain:
            return
        if not isinstance(self.inputs, Tensor) or self.inputs.dim() < 2:
            raise DataError("mean, std", "only tensors with channels have them", "normalise the inputs beforehand")
        if {len(self.mean), len(self.std)} - {1, self.inputs.shape[1]}:
            raise DataError(
                "mean, std", "they do not match the number of channels", "give one value, or one per channel"
            )

    @property
    def _plain(self) -> bool:
        return self.mean == (0.0,) and self.std == (1.0,)

    @property
    def num_targets(self) -> int:
        """Labels that are judged: one per example, or all positions that are not -100."""
        return len(self) if self.labels.dim() == 1 else int((self.labels != IGNORED).sum())

    @property
    def nbytes(self) -> int:
        """Size of the inputs."""
        return sum(t.nbytes for t in _tensors(self.inputs))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        one = self.normalise(each(self.inputs, lambda t: t[index : index + 1]))
        return each(one, lambda t: t[0]), self.labels[index]

    def normalise(self, inputs: Inputs) -> Any:
        """Raw inputs as the network wants them: images as float32, scaled and normalised; the rest as it is."""
        if not isinstance(inputs, Tensor):
            return each(inputs, lambda t: t.float().div_(255.0) if t.dtype == torch.uint8 else t)
        scaled = inputs.float().div_(255.0) if inputs.dtype == torch.uint8 else inputs
        if self._plain:
            return scaled
        shape = (1, -1, *[1] * (inputs.dim() - 2))
        mean = torch.tensor(self.mean, device=inputs.device, dtype=torch.float32).view(shape)
        std = torch.tensor(self.std, device=inputs.device, dtype=torch.float32).view(shape)
        return (scaled - mean) / std

    def subset(self, indices: Tensor) -> ArrayDataset:
        """The examples at `indices` (int64 [M]), copied."""
        return ArrayDataset(each(self.inputs, lambda t: t[indices]), self.labels[indices], self.mean, self.std)

    def to(self, device: torch.device | str) -> ArrayDataset:
        """The same data on another device; itself if it is there already."""
        if self.labels.device == torch.device(device):
            return self
        moved = each(self.inputs, lambda t: t.to(device))
        return ArrayDataset(moved, self.labels.to(device), self.mean, self.std)


def next_tokens(tokens: Tensor, ignored: int | None = None) -> ArrayDataset:
    """Sequences for a language model: every token is predicted from those before it.

    Args:
        tokens: int64 [N, T + 1].
        ignored: id of the padding, which is read but never asked for; None if there is none.

    Returns:
        Inputs and labels, [N, T] each.
    """
    labels = tokens[:, 1:].clone()
    if ignored is not None:
        labels[labels == ignored] = IGNORED
    return ArrayDataset(tokens[:, :-1].contiguous(), labels)


def each(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, or every tensor of a dict, changed."""
    return change(inputs) if isinstance(inputs, Tensor) else {k: change(t) for k, t in inputs.items()}


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs.values())


@dataclass(frozen=True)
class DataSource:
    """A data set in three parts, with what training on it needs to know.

    Attributes:
        name: short name for reports.
        train: learned from; the only part that is augmented.
        validation: cut from the training data; everything is chosen on it.
        test: the final number.
        num_classes: number of classes, or of tokens.
        loss_fn: `loss_fn(logits, labels, reduction=...)`; logits are the model's `data.losses.main_output`. With
            `DenseOutputs()` labels are not looked at: the dense network's outputs take their place.
        augment: None or `augment(raw inputs, generator) -> raw inputs`, applied before normalisation.
    """

    name: str
    train: ArrayDataset
    validation: ArrayDataset
    test: ArrayDataset
    num_classes: int
    loss_fn: Callable[..., Tensor] = cross_entropy
    augment: Augment | None = None

    @property
    def example_inputs(self) -> Any:
        """Two normalised training examples: a tensor, or a dict of tensors."""
        return self.train.normalise(each(self.train.inputs, lambda t: t[:2]))


class Batches:
    """A fast re-iterable of (normalised inputs, labels) over an in-memory data set.

    The same seed and epoch give the same batches. Under several processes the batches are cut from the data as in one
    process and each rank takes its interleaved share of every batch, so all ranks see equally many batches, no example
    twice, none left out.

    Args:
        dataset: what to read.
        batch_size: examples per batch, over all ranks together.
        shuffle: a new order every epoch.
        seed: of the order and of the augmentation.
        augment: see `DataSource.augment`.
        drop_last: leave out a last batch that is not full.
        rank: this process.
        world: number of processes.

    Raises:
        ConfigError: an impossible size, rank or world.
        DataError: fewer examples than ranks.
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augment | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not allows(int, batch_size):
            raise ConfigError("Batches", f"batch_size={batch_size!r} is no number of examples", "give for example 64")
        if batch_size < world or not 0 <= rank < world:
            what = f"batch_size={batch_size}, rank={rank}, world={world}"
            raise ConfigError("Batches", f"impossible: {what}", "give every rank at least one example per batch")
        if len(dataset) < world:
            raise DataError("Batches", f"{len(dataset)} examples for {world} ranks", "use more data or fewer processes")
        self.dataset = dataset
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.augment, self.drop_last = augment, drop_last
        self.rank, self.world, self.epoch = rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        # A rest that would leave a rank without examples is joined to the batch before it.
        return full if self.drop_last or (rest < self.world and full) else full + 1

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        order, generator = self._order()
        count = len(self)
        for number in range(count):
            last = number == count - 1 and not self.drop_last
            stop = len(self.dataset) if last else (number + 1) * self.batch_size
            mine = order[number * self.batch_size : stop][self.rank :: self.world]
            yield self._batch(mine, generator)

    def _order(self) -> tuple[Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(_mixed_seed(self.seed, self.epoch))
        count = len(self.dataset)
        order = torch.arange(count, device="cpu")
        if self.shuffle:
            order = torch.randperm(count, generator=generator, device="cpu")
        # The order is the same on every rank, the augmentation is not.
        return order, torch.Generator().manual_seed(_mixed_seed(self.seed, self.epoch, self.rank + 1))

    def _batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Any, Tensor]:
        indices = indices.to(self.dataset.labels.device)
        inputs = each(self.dataset.inputs, lambda t: t[indices])
        if self.augment is not None:
            inputs = self.augment(inputs, generator)
        return self.dataset.normalise(inputs), self.dataset.labels[indices]


def _mixed_seed(*parts: int) -> int:
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part + 1) % (2**63)
    return mixed


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """CIFAR's augmentation: 4 black pixels around, a random crop of the old size, half of the images mirrored.

    Args:
        images: raw images [B, C, H, W].
        generator: CPU generator that the draws come from.

    Returns:
        New images of the same shape and dtype.
    """
    count, _, height, width = images.shape
    top = torch.randint(0, 9, (count, 1), generator=generator, device="cpu")
    left = torch.randint(0, 9, (count, 1), generator=generator, device="cpu")
    mirrored = torch.rand((count, 1), generator=generator, dtype=torch.float32, device="cpu") < 0.5
    columns = torch.arange(width, device="cpu").expand(count, width)
    columns = torch.where(mirrored, width - 1 - columns, columns) + left
    rows = torch.arange(height, device="cpu") + top
    device = images.device
    which = torch.arange(count, device=device)[:, None, None]
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    cropped = padded[which, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()


def split_indices(labels: Tensor, held_out: float | int, seed: int) -> tuple[Tensor, Tensor]:
    """Split stratified by label.

    Args:
        labels: int64 [N].
        held_out: fraction in (0, 1) or number of examples to hold out.
        seed: of the choice.

    Returns:
        Sorted indices that stay and that are held out; every class is held out in proportion, to the nearest example.

    Raises:
        ConfigError: a split that leaves one side empty.
    """
    total = len(labels)
    fraction = isinstance(held_out, float) and 0 < held_out < 1
    wanted = round(held_out * total) if fraction else held_out if type(held_out) is int else 0
    if not 0 < wanted < total:
        fix = "give a fraction between 0 and 1, or a number of examples smaller than the training set"
        raise ConfigError(f"validation={held_out}", f"it would hold out {wanted} of {total} examples", fix)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(total, generator=generator, device="cpu").to(labels.device)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    # Equally spaced picks from the list ordered by class take every class in proportion.
    picks = (torch.arange(wanted, dtype=torch.float64, device=labels.device) + 0.5) * (total / wanted)
    mask = torch.zeros(total, dtype=torch.bool, device=labels.device)
    mask[by_class[picks.long().clamp_(max=total - 1)]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()
