"""The registry of the kinds of data specs, and what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from torch import Tensor, nn

from prunus.data.datasets import ArrayDataset, Augment, DataSource, split_indices
from prunus.errors import ConfigError
from prunus.models.registry import SpecRegistry
from prunus.runtime.fields import check_fields
from prunus.runtime.ranges import Count, Natural, Positive, Share

Change = Literal["crop", "zoom", "mirror"]
"""What is done to pictures at random: see `Reading.augment`."""


@dataclass(frozen=True)
class Reading:
    """How data are read, as far as their place does not say it; `prunus compress --load NAME=VALUE`.

    Attributes:
        validation: fraction or number of training examples held out for validation, where no others are there for it.
        test: the same for the test, always the same examples whatever the seed, where the data come as one piece.
        size: of pictures as the network gets them: of a square, or height and width. Without a word the model's own,
            if it has one, or that of the pictures, if all have the same.
        crop: share of the shorter side that is kept of a picture, its middle; 1 keeps all of it.
        mean: per channel, of pixels from 0 to 1, subtracted; one value serves all channels.
        std: per channel, divided by.
        interpolation: when pictures are resized.
        channels: 3 (RGB) or 1 (grey).
        augment: of training pictures. `crop`: anywhere within an eighth beyond the edges, which is black; `zoom`: a
            random part of 8 to 100 % of the area, resized; `mirror`: half of them, left to right. `auto`: crop and
            mirror for pictures up to 64 pixels, zoom and mirror for larger ones.
        target: column of a table or data set that is to be predicted; without a word `label`, or the last one.
        columns: what it is predicted from; without a word all others.
        loss: `mse` (squared error) or `cross_entropy`; `auto` takes the former for targets that are no whole numbers.
        length: tokens of a text at most.
        workers: processes that read; without a word one for each processor, up to 4, where it takes long.
        broken: what is done about an example that can't be read: it ends the run, or is left out with a warning.

    Raises:
        ConfigError: a value outside its range.
    """

    validation: int | float = 0.1
    test: int | float = 0.1
    size: Count | tuple[Count, Count] | None = None
    crop: Share | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    channels: Literal[1, 3] | None = None
    augment: Literal["auto", "none"] | tuple[Change, ...] = "auto"
    target: str | None = None
    columns: tuple[str, ...] = ()
    loss: Literal["auto", "cross_entropy", "mse"] = "auto"
    length: Count = 128
    workers: Natural | None = None
    broken: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def said(self) -> tuple[str, ...]:
        """Names of the settings that are not as they are without a word."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != f.default)


@dataclass(frozen=True)
class DataRequest:
    """What is asked of a data source besides its place.

    Attributes:
        validation: fraction or number of training examples held out for validation.
        seed: of that choice.
        model: spec of the model, or folder of the artifact, that the data are for; None if nobody said.
        network: the model itself, which may know how its inputs are prepared; None if nobody gave it.
        labelled: False if no label is looked at, so that there need be none.
        reading: how data are read.
    """

    validation: float | int = 0.1
    seed: int = 0
    model: str | None = None
    network: nn.Module | None = field(default=None, repr=False)
    labelled: bool = True
    reading: Reading = Reading()

    def in_three_parts(
        self, name: str, learned: ArrayDataset, test: ArrayDataset, classes: int, augment: Augment | None = None
    ) -> DataSource:
        """Training data, of which the validation split is cut, and test data, which are read for the final number."""
        stays, held_out = split_indices(learned.labels, self.validation, self.seed)
        return DataSource(name, learned.subset(stays), learned.subset(held_out), test, classes, augment=augment)

    def cut(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the three parts of data in one piece, each class in proportion: training, validation, test.

        The test examples are the same whatever the seed, so that numbers of different seeds can be compared.

        Args:
            labels: int64 [N]; all the same where there are none.

        Raises:
            ConfigError: a part would be empty.
        """
        stays, test = split_indices(labels, self.reading.test, 0, "test")
        train, validation = split_indices(labels[stays], self.validation, self.seed)
        return stays[train], stays[validation], test


Load = Callable[[str, DataRequest], DataSource]
DATA_SOURCES: SpecRegistry[Load] = SpecRegistry("data")
READ: dict[Load, tuple[str, ...]] = {}
"""Settings of `Reading` that a kind looks at, besides `validation`."""
TABLES = ("test", "target", "columns", "loss", "mean", "std")
PICTURES = ("test", "size", "crop", "mean", "std", "interpolation", "channels", "augment", "workers", "broken")


def data_source(name: str, *, form: str, help: str, reads: Sequence[str] = ()) -> Callable[[Load], Load]:
    """A decorator that registers a function as the one that loads specs of this kind; see `SpecRegistry.register`.

    Args:
        name: the word before the colon; empty for every spec that no other kind takes.
        form: how such a spec is written.
        help: one line that says what it is.
        reads: settings of `Reading` that it looks at, besides `validation`; others are refused.
    """
    register = DATA_SOURCES.register(name, form=form, help=help)

    def registered(load: Load) -> Load:
        READ[load] = tuple(reads)
        return register(load)

    return registered


def check_read(spec: str, load: Load, reading: Reading) -> None:
    """Raise ConfigError for a setting that this kind of data doesn't look at."""
    check_known(f"data {spec!r}", reading, READ.get(load, ()))


def check_known(where: str, reading: Reading, reads: Sequence[str]) -> None:
    """Raise ConfigError for a setting that is neither `validation` nor among those that are looked at."""
    known = ("validation", *reads)
    for name in reading.said:
        if name not in known:
            what = f"{name} means nothing to them"
            raise ConfigError(where, what, f"leave it out; they look at {', '.join(known)}")
