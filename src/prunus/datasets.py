"""Images in memory: data sets, their three parts, and fast batches that shard over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.errors import ConfigError, DataError

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class ArrayDataset:
    """Images and labels in memory; usable with `Batches` and with torch's DataLoader.

    Attributes:
        images: uint8 (0..255, scaled to 0..1 on the way out) or float32 (taken as it is), [N, C, H, W].
        labels: int64 [N].
        mean: per channel, subtracted after scaling; one value serves all channels.
        std: per channel, divided by.

    Raises:
        DataError: shapes or dtypes that do not fit.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise DataError("images", f"found {found}", "give one uint8 or float32 tensor [N, C, H, W]")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            found = f"{self.labels.dtype} {list(self.labels.shape)} for {len(self.images)} images"
            raise DataError("labels", f"found {found}", "give one int64 label per image")
        if {len(self.mean), len(self.std)} - {1, self.images.shape[1]}:
            raise DataError(
                "mean, std", "they do not match the number of channels", "give one value, or one per channel"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.normalise(self.images[index : index + 1])[0], self.labels[index]

    def normalise(self, images: Tensor) -> Tensor:
        """Raw images [B, C, H, W] as the network wants them, float32."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        scaled = images.float().div_(255.0) if images.dtype == torch.uint8 else images
        return (scaled - mean) / std

    def subset(self, indices: Tensor) -> ArrayDataset:
        """The examples at `indices` (int64 [M]), copied."""
        return ArrayDataset(self.images[indices], self.labels[indices], self.mean, self.std)

    def to(self, device: torch.device | str) -> ArrayDataset:
        """The same data on another device; itself if it is there already."""
        if self.images.device == torch.device(device):
            return self
        return ArrayDataset(self.images.to(device), self.labels.to(device), self.mean, self.std)


@dataclass(frozen=True)
class DataSource:
    """A data set in three parts, with what training on it needs to know.

    Attributes:
        name: short name for reports.
        train: learned from; the only part that is augmented.
        validation: cut from the training data; everything is chosen on it.
        test: the final number.
        num_classes: number of classes.
        loss_fn: `loss_fn(outputs, labels, reduction=...)`.
        augment: None or `augment(raw images [B, C, H, W], generator) -> raw images`, applied before normalisation.
    """

    name: str
    train: ArrayDataset
    validation: ArrayDataset
    test: ArrayDataset
    num_classes: int
    loss_fn: Callable[..., Tensor] = F.cross_entropy
    augment: Augment | None = None

    @property
    def example_inputs(self) -> Tensor:
        """Two normalised training images, float32 [2, C, H, W]."""
        return self.train.normalise(self.train.images[:2])


class Batches:
    """A fast re-iterable of (normalised images, labels) over an in-memory data set.

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
        if batch_size < world or not 0 <= rank < world:
            found = f"batch_size={batch_size}, rank={rank}, world={world}"
            raise ConfigError("Batches", f"impossible: {found}", "give every rank at least one example per batch")
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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
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
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        # The order is the same on every rank, the augmentation is not.
        return order, torch.Generator().manual_seed(_mixed_seed(self.seed, self.epoch, self.rank + 1))

    def _batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        indices = indices.to(self.dataset.images.device)
        images = self.dataset.images[indices]
        if self.augment is not None:
            images = self.augment(images, generator)
        return self.dataset.normalise(images), self.dataset.labels[indices]


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
    top = torch.randint(0, 9, (count, 1), generator=generator)
    left = torch.randint(0, 9, (count, 1), generator=generator)
    mirrored = torch.rand((count, 1), generator=generator) < 0.5
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(mirrored, width - 1 - columns, columns) + left
    rows = torch.arange(height) + top
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
    shuffled = torch.randperm(total, generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    # Equally spaced picks from the list ordered by class take every class in proportion.
    picks = (torch.arange(wanted, dtype=torch.float64) + 0.5) * (total / wanted)
    mask = torch.zeros(total, dtype=torch.bool)
    mask[by_class[picks.long().clamp_(max=total - 1)]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()
