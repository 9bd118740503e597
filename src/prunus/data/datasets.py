"""Data sets in memory and fast batches of them, and the three parts of any data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from prunus.data.batches import as_batches, length_of
from prunus.data.losses import IGNORED, Outputs, cross_entropy
from prunus.data.metrics import Metric
from prunus.data.reading import ReadBatches
from prunus.data.shared import SharedLoader, shareable
from prunus.data.sharing import Shares, mixed_seed
from prunus.errors import ConfigError, DataError
from prunus.runtime.arguments import examples_in, tensors_in

Augment = Callable[[Tensor, torch.Generator], Tensor]
Inputs = Tensor | Mapping[str, Tensor]
KINDS = (torch.uint8, torch.float32, torch.int64)


@dataclass(frozen=True)
class ArrayDataset:
    """Inputs and labels in memory; usable with `Batches` and with torch's DataLoader.

    Attributes:
        inputs: uint8 images [N, C, H, W] (0..255, scaled to 0..1 on the way out); float32 or int64 (token ids)
            [N, ...], taken as they are; or a dict of such tensors, which the model gets as keyword arguments.
        labels: int64 [N], or one per position [N, T] with -100 where none is judged; or float32 targets [N, ...].
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
        whole = self.labels.dtype == torch.int64 and self.labels.dim() <= 3
        if not self.labels.dim() or not (whole or self.labels.dtype == torch.float32):
            what = f"{self.labels.dtype} {list(self.labels.shape)}"
            fix = "give one int64 label per example, or per position of each, or float32 targets"
            raise DataError("labels", f"found {what}", fix)
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
        one_each = self.labels.dim() == 1 or self.labels.is_floating_point()
        return len(self) if one_each else int((self.labels != IGNORED).sum())

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


class Batches(Shares):
    """A fast re-iterable of (normalised inputs, labels) over an in-memory data set; see `Shares` for who gets what.

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
        super().__init__(
            len(dataset), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, rank=rank, world=world
        )
        self.dataset, self.augment = dataset, augment

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        # The order is the same on every rank, the augmentation is not.
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch, self.rank + 1))
        for mine in self.indices():
            yield self._batch(mine, generator)

    def _batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Any, Tensor]:
        indices = indices.to(self.dataset.labels.device)
        inputs = each(self.dataset.inputs, lambda t: t[indices])
        if self.augment is not None:
            inputs = self.augment(inputs, generator)
        return self.dataset.normalise(inputs), self.dataset.labels[indices]


Part = ArrayDataset | Dataset[Any] | Iterable[Any]
"""Of data: in memory, read example by example, or batches as somebody made them."""
SPARE = 8
"""Examples that are read where the first few are wanted: some may be left out."""
AT_ONCE = 2**22
"""Numbers in the inputs of a batch that is judged: 27 pictures of 224 x 224, all 500 of 32 x 32."""


def read_by_number(part: Any) -> bool:
    """Whether a part is a data set of examples, in memory or not; otherwise it is batches."""
    return isinstance(part, ArrayDataset) or (isinstance(part, Dataset) and not isinstance(part, IterableDataset))


def batches_of(part: Part, batch_size: int, *, workers: int | None = None, **share: Any) -> Iterable[Any]:
    """Batches of a part in the order of its examples; what is batches already stays as it is.

    Args:
        part: in memory, read example by example, or batches.
        batch_size: of examples, over all ranks together; batches have their own.
        workers: see `ReadBatches`.
        share: further settings of `Batches`.
    """
    if isinstance(part, ArrayDataset):
        return Batches(part, batch_size, **share)
    return ReadBatches(part, batch_size, workers=workers, **share) if read_by_number(part) else part  # type: ignore[arg-type, return-value]


def judged_at_once(part: Part, wanted: int) -> int:
    """As many examples as wanted, or fewer of large ones, whose activations would fill the memory."""
    if not read_by_number(part):
        return wanted
    few = first_of(part, SPARE)
    values = sum(t.numel() for t in tensors_in(few)) / max(examples_in(few), 1)
    return max(1, min(wanted, int(AT_ONCE / max(values, 1))))


def size_of(part: Part) -> str:
    """How much a part holds, in words."""
    if read_by_number(part):
        return f"{len(part):,} examples"  # type: ignore[arg-type]
    batches = length_of(part)
    return "batches of unknown number" if batches is None else f"{batches:,} batches"


def first_of(part: Part, count: int, model: nn.Module | None = None) -> Any:
    """Inputs of the first examples, as many as there are of so many, or as a first batch has.

    Args:
        part: of data.
        count: how many at most.
        model: whose forward tells inputs from targets.
    """
    if isinstance(part, ArrayDataset):
        return part.normalise(each(part.inputs, lambda t: t[:count]))
    given, _ = as_batches(batches_of(part, max(count, SPARE), workers=0), model).first()
    size = examples_in(given)

    def few(t: Tensor) -> Tensor:
        return t[:count] if t.dim() and t.shape[0] == size else t

    return torch.utils._pytree.tree_map_only(Tensor, few, given)


@dataclass(frozen=True)
class DataSource:
    """A data set in three parts, with what training on it needs to know.

    A part is an `ArrayDataset`, any data set of torch's that is read by number, whose examples are then batched as the
    settings say, or batches as somebody made them: a DataLoader, a list, in any form that `as_batches` takes.

    Attributes:
        name: short name for reports.
        train: learned from; the only part that is augmented.
        validation: cut from the training data; everything is chosen on it.
        test: the final number; None: there is none.
        num_classes: number of classes, or of tokens; 0 where there are none.
        loss_fn: mean loss of a batch, `loss_fn(outputs, targets)`, see `outputs`. `data.losses.own_loss` takes what a
            model computes itself from labels among its inputs, as transformers' do. With `DenseOutputs()` no label is
            looked at: the dense network's outputs take their place.
        augment: None or `augment(raw inputs, generator) -> raw inputs`, applied before normalisation; of an
            `ArrayDataset` alone, others augment as they read.
        classes: their names, where they have some.
        workers: processes that read what is not in memory; None: one for each processor, up to 4.
        told: one line about what was found, for the user.
        metric: what networks are judged by besides the loss; None: top-1 where targets are classes, and else the loss.
        outputs: whether loss and metric get the `main` tensor of the model's answer, or `all` of it.
        sample: example inputs; None: those of the first two training examples.

    Example:
        >>> part = [(torch.randn(6, 4), torch.arange(6) % 3)]
        >>> data = prunus.DataSource("mine", part, part, loss_fn=nn.CrossEntropyLoss())
        >>> data.example_inputs.shape
        torch.Size([2, 4])
    """

    name: str
    train: Part
    validation: Part
    test: Part | None = None
    num_classes: int = 0
    loss_fn: Callable[..., Tensor] = cross_entropy
    augment: Augment | None = None
    classes: tuple[str, ...] = ()
    workers: int | None = None
    told: str = ""
    metric: Metric | None = None
    outputs: Outputs = "main"
    sample: Any = field(default=None, repr=False)

    @cached_property
    def example_inputs(self) -> Any:
        """Two normalised training examples: a tensor, or a dict of tensors."""
        return self.sample if self.sample is not None else first_of(self.train, 2)

    def batches(self, batch_size: int, *, seed: int, **share: Any) -> Iterable[Any]:
        """The training part, shuffled and augmented, for this process; a DataLoader that all were given is shared out.

        Args:
            batch_size: over all processes together; batches that are made already have their own.
            seed: of order and augmentation.
            share: `drop_last`, `rank` and `world`, as for `Batches`.
        """
        world = share.get("world", 1)
        if world > 1 and shareable(self.train):
            return SharedLoader(self.train, share["rank"], world)  # type: ignore[arg-type]
        own = {"augment": self.augment} if isinstance(self.train, ArrayDataset) else {}
        return batches_of(self.train, batch_size, workers=self.workers, shuffle=True, seed=seed, **own, **share)


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


def split_indices(labels: Tensor, held_out: float | int, seed: int, part: str = "validation") -> tuple[Tensor, Tensor]:
    """Split stratified by label.

    Args:
        labels: int64 [N].
        held_out: fraction in (0, 1) or number of examples to hold out.
        seed: of the choice.
        part: what is held out, for refusals.

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
        raise ConfigError(f"{part}={held_out}", f"it would hold out {wanted} of {total} examples", fix)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(total, generator=generator, device="cpu").to(labels.device)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    # Equally spaced picks from the list ordered by class take every class in proportion.
    picks = (torch.arange(wanted, dtype=torch.float64, device=labels.device) + 0.5) * (total / wanted)
    mask = torch.zeros(total, dtype=torch.bool, device=labels.device)
    mask[by_class[picks.long().clamp_(max=total - 1)]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()
