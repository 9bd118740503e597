"""Batches as people write them, brought into one form for every loop: (inputs of the model, targets of the loss)."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from prunus.data.losses import IGNORED
from prunus.data.reading import ReadBatches
from prunus.data.shared import shareable
from prunus.errors import DataError
from prunus.runtime.arguments import as_arguments, examples_in, signature_of, tensors_in
from prunus.runtime.precision import dtype_name
from prunus.runtime.processes import distributed, gathered, summed

LABELS = ("labels", "label", "label_ids", "targets", "target")
"""Keys under which a batch that is a dict holds its targets; the first that is there counts."""
FORMS = (
    "yield (inputs, targets), (input, input, ..., target) as the example inputs are, a dict of the model's keyword "
    f"arguments with its targets under {LABELS[0]!r}, or inputs alone; tensors, batch first"
)
RE_ITERABLE = "it is gone after one pass, and learning takes several"


@dataclass(frozen=True)
class Splits:
    """Batches to learn from, and others to judge by what was learned.

    Attributes:
        train: what is learned from, in any form that `as_batches` takes.
        validation: what drawn masks are compared on, and losses reported; never the test data.

    Example:
        >>> net, batches = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [(torch.randn(6, 4),)]
        >>> both = prunus.Splits(batches, [(torch.randn(6, 4),)])
        >>> prunus.prune(net, torch.randn(2, 4), method="l1", target=0.5, data=both).scores.method
        'l1'
    """

    train: Iterable[Any]
    validation: Iterable[Any]


@dataclass(frozen=True)
class EveryNth:
    """One process's share of batches that all of them were given: its own of every `world` batches."""

    data: Iterable[Any]
    rank: int
    world: int

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.data), self.rank, None, self.world)


@dataclass(frozen=True)
class Form:
    """What tells inputs from targets.

    Attributes:
        arguments: number of inputs in a batch that is a longer tuple.
        required: number of positional arguments that the model's forward can't do without.
        names: keyword arguments that it takes; None if any.
        keys: of the example inputs, if they are a dict.
        own_loss: the model computes its loss itself and wants the targets among its inputs.
    """

    arguments: int = 1
    required: int = 1
    names: frozenset[str] | None = None
    keys: frozenset[str] = frozenset()
    own_loss: bool = False

    @classmethod
    def of(cls, model: nn.Module | None, example_inputs: Any = None, *, own_loss: bool = False) -> Form:
        """As the model's forward and the example inputs say."""
        if model is None:
            return cls(own_loss=own_loss)
        signature = signature_of(model)
        parameters = [] if signature is None else list(signature.parameters.values())
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        required = sum(p.kind in positional and p.default is p.empty for p in parameters)
        any_name = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters)
        args, kwargs = ((), {}) if example_inputs is None else as_arguments(example_inputs, model)
        keys = frozenset(example_inputs if isinstance(example_inputs, Mapping) else ())
        if not kwargs and keys:  # the model reads the dict itself
            any_name = True
        names = None if any_name else frozenset(p.name for p in parameters)
        return cls(len(args) + len(kwargs) or max(required, 1), required, names, keys, own_loss)


class Loader:
    """Re-iterable (inputs, targets) with a length, over whatever a user loops over; see `as_batches`."""

    def __init__(self, data: Iterable[Any], form: Form) -> None:
        self.data, self.form = data, form
        self._length: int | None = None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        empty = True
        for batch in self.data:
            empty = False
            yield unpack(batch, self.form)
        if empty and not isinstance(self.data, EveryNth):  # of few batches a process may have none
            fix = "give a loader that yields at least one batch each time it is looped over"
            raise DataError("batches", "there are none: a pass over the data yields nothing", fix)

    def __len__(self) -> int:
        """Batches in one pass; counted by one where the data do not say."""
        if self._length is None:
            self._length = length_of(self.data)
        if self._length is None:
            with torch.random.fork_rng(devices=[]):
                self._length = sum(1 for _ in self)
        return self._length

    @property
    def inputs(self) -> Loader:
        """The same batches for passes that use no targets, where these are costly."""
        return self

    @property
    def in_blocks(self) -> bool:
        """Whether several processes have consecutive examples of a batch each, as accelerate deals; else in turn."""
        return type(self.data).__module__.startswith("accelerate.")

    def first(self) -> tuple[Any, Any]:
        """The first batch; the random state is put back. Raises DataError if there is none, or one of no known form."""
        with torch.random.fork_rng(devices=[]):
            return next(iter(self._first()))

    def first_key(self) -> str | None:
        """Under which key the first batch holds its targets, if it is a dict that has them."""
        with torch.random.fork_rng(devices=[]):
            return label_key(next(iter(self._first().data), None))

    def labelled(self) -> bool:
        """Whether the first batch is a dict with targets among its keys."""
        return self.first_key() is not None

    def unlabelled(self) -> bool:
        """Whether the first batch is inputs alone; not where there is none, or one of no known form."""
        with torch.random.fork_rng(devices=[]), contextlib.suppress(DataError):
            return next(iter(self._first()))[1] is None
        return False

    def _first(self) -> Loader:
        """The same of the first batch alone, where the data can give it without starting a whole pass."""
        if not isinstance(self.data, ReadBatches):
            return self
        batch = self.data.first()
        return self.of([] if batch is None else [batch])

    def of(self, data: Iterable[Any]) -> Loader:
        """Other data in the same form."""
        return Loader(data, self.form)

    def set_epoch(self, epoch: int) -> None:
        """Tell whatever shuffles or shards the data which pass begins."""
        for setter in {id(p): getattr(p, "set_epoch", None) for p in self.places()}.values():
            if callable(setter):
                setter(epoch)

    def places(self) -> tuple[Any, ...]:
        """The data, its samplers and its data set: whatever may know an epoch, or hold a generator of its own."""
        data = self.data
        batches = getattr(data, "batch_sampler", None)
        samplers = (getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
        return (data, *samplers, getattr(data, "dataset", None))

    def num_labels(self) -> int:
        """Labels in one pass over the data of all processes: what the mean loss is a mean over.

        One per example; of targets that are whole numbers per position (tokens, pixels) every one that is judged.
        """
        stated = getattr(getattr(self.data, "dataset", None), "num_targets", None)
        if stated is not None:
            return int(stated)
        known = self.known_examples()
        if known is not None and _per_position(self.first()[1]) is None:
            return known
        with torch.random.fork_rng(devices=[]):
            total = sum(labels_in(inputs, targets) for inputs, targets in self)
        if distributed() and not self.same_on_all_ranks():
            return int(summed(torch.tensor(total)))
        return total

    def known_examples(self) -> int | None:
        """Examples behind the loaders of all processes, where these say so."""
        known = examples_behind(self.data)
        if known is None or not distributed() or not shareable(self.data) or self.same_on_all_ranks():
            return known
        return int(summed(torch.tensor(known)))  # processes with data sets of their own

    def same_on_all_ranks(self) -> bool:
        """Whether several processes were given the same first batch."""
        if not distributed():
            return False
        sums = [t.detach().double().cpu().flatten() for t in tensors_in(self.first())]
        digest = torch.stack([(s * torch.arange(1, len(s) + 1, device="cpu")).sum() for s in sums]).sum()
        return len({float(d) for d in gathered(digest)}) == 1

    def warn_of_shared_data(self) -> None:
        """Say so where all processes would learn from the same batches."""
        if self.same_on_all_ranks():
            what = "every process was given the same first batch: they repeat each other's work"
            warnings.warn(f"{what}; give the DataLoader a DistributedSampler", RuntimeWarning, stacklevel=3)


def as_batches(
    data: Any, model: nn.Module | None = None, example_inputs: Any = None, *, own_loss: bool = False
) -> Loader:
    """The data of a user as re-iterable (inputs, targets); a `Loader` as it is. Reads nothing yet.

    Args:
        data: a DataLoader, a list of batches, or any other object that can be looped over again and again. A batch is
            (inputs, targets), (x1, x2, y) with as many inputs as the example inputs have, a dict of keyword arguments
            with the targets under `labels`, or inputs alone. Targets may be anything that the loss takes.
        model: whose forward says how many inputs it needs and what they are called.
        example_inputs: say how many inputs there are.
        own_loss: leave the labels of dicts among the inputs, for a model that returns its loss.

    Raises:
        DataError: no data that can be looped over twice, or examples that are no batches.
    """
    if isinstance(data, Loader):
        return data
    kind = type(data).__name__
    if isinstance(data, Generator) or (
        isinstance(data, Iterator) and type(data).__module__ in ("builtins", "itertools")
    ):
        fix = "give a list of batches, a DataLoader, or an object whose __iter__ starts anew"
        raise DataError("data", f"a {kind} can't be looped over again: {RE_ITERABLE}", fix)
    single = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    if single or isinstance(data, Tensor | str | bytes | Mapping):
        what = f"a {kind} yields examples, not batches" if single else f"a {kind} is no loader"
        raise DataError("data", what, "wrap the data in torch.utils.data.DataLoader, or give a list of batches")
    if isinstance(data, tuple | list) and data and isinstance(data[0], Tensor):
        what = f"a {kind} of tensors is one batch, or batches without targets"
        raise DataError("data", what, "give a list of batches: [(x, y), ...], or [(x,), ...] without targets")
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        fix = "give a DataLoader or a list of batches"
        if hasattr(data, "train") and hasattr(data, "validation"):
            fix = "give data.batches(batch_size, seed=0)"
        raise DataError("data", f"a {kind} can't be looped over", fix)
    return Loader(data, Form.of(model, example_inputs, own_loss=own_loss))


def unpack(batch: Any, form: Form) -> tuple[Any, Any]:
    """One batch as (inputs, targets); targets are None where there are none.

    Raises:
        DataError: another structure, naming it and what is understood.
    """
    if isinstance(batch, Mapping):
        inputs, targets = _from_mapping(dict(batch), form)
    elif isinstance(batch, Tensor):
        inputs, targets = batch, None
    elif isinstance(batch, tuple | list) and len(batch) == 1:
        return unpack(batch[0], form)
    elif isinstance(batch, tuple | list) and batch:
        inputs, targets = _from_parts(tuple(batch), form)
    else:
        raise DataError("batch", f"it is {structure(batch)}", FORMS)
    if not tensors_in(inputs):
        raise DataError("batch", f"no tensor in its inputs: it is {structure(batch)}", FORMS)
    return inputs, targets


def _from_parts(parts: tuple[Any, ...], form: Form) -> tuple[Any, Any]:
    # A pair is (inputs, targets) unless the model can't be called with its first part.
    count = form.arguments if len(parts) > 2 else form.required if isinstance(parts[0], Tensor) else 1
    count = max(count, 1)
    if len(parts) < count:
        raise DataError("batch", f"it is {structure(parts)}, and the model takes {count} inputs", FORMS)
    first, rest = parts[0], parts[count:]
    alone = dict(first) if isinstance(first, Mapping) else first
    return alone if count == 1 else parts[:count], None if not rest else rest[0] if len(rest) == 1 else rest


def _from_mapping(batch: dict[str, Any], form: Form) -> tuple[Any, Any]:
    key = label_key(batch)
    targets = None if key is None else batch[key]
    inputs = batch if form.own_loss or key in form.keys else {k: v for k, v in batch.items() if k != key}
    unknown = sorted(map(str, set(inputs) - form.names)) if form.names is not None else []
    if unknown and len(inputs) == 1:
        return next(iter(inputs.values())), targets
    if unknown and (len(unknown) < len(inputs) or form.required != 1):
        what = f"it is {structure(batch)}, and the model's forward takes no {', '.join(map(repr, unknown))}"
        raise DataError("batch", what, f"leave these out; it takes {', '.join(sorted(form.names or ()))}")
    return inputs, targets


def label_key(batch: Any) -> str | None:
    """Under which key a batch holds its targets, if it is a dict that has them."""
    return next((k for k in LABELS if k in batch), None) if isinstance(batch, Mapping) else None


def structure(value: Any, depth: int = 2) -> str:
    """A value in words, for messages: `a tuple of 2: float32 [8, 3], int64 [8]`."""
    if isinstance(value, Tensor):
        return f"{dtype_name(value.dtype)} {list(value.shape)}"
    kind = f"a {type(value).__name__}"
    if not depth or not isinstance(value, Mapping | tuple | list):
        return kind
    if isinstance(value, Mapping):
        return f"{kind} of " + ", ".join(f"{k!r}: {structure(v, depth - 1)}" for k, v in list(value.items())[:6])
    return f"{kind} of {len(value)}: " + ", ".join(structure(v, depth - 1) for v in value[:4])


def labels_in(inputs: Any, targets: Any) -> int:
    """Labels of a batch, see `Loader.num_labels`."""
    positions = _per_position(targets)
    return examples_in(inputs) if positions is None else int((positions != IGNORED).sum())


def _per_position(targets: Any) -> Tensor | None:
    """The targets that are one whole number for each of several positions of an example."""
    first = targets[0] if isinstance(targets, tuple | list) and targets else targets
    whole = isinstance(first, Tensor) and first.dim() > 1 and not first.is_floating_point()
    return first if whole else None


def length_of(data: Any) -> int | None:
    """Its length; None where it has none or does not know it, as streams."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def examples_behind(data: Any) -> int | None:
    """Examples behind a loader over all processes, where it says so without being looped over."""
    total, sampler = length_of(getattr(data, "dataset", None)), getattr(data, "sampler", None)
    chosen = total if sampler is None or hasattr(sampler, "num_replicas") else length_of(sampler)
    return None if total is None or chosen is None else min(total, chosen)


def forward(model: nn.Module, inputs: Any) -> Any:
    """The model's answer to the inputs of a batch.

    Raises:
        DataError: it fails on inputs of another floating-point type than its weights.
    """
    args, kwargs = as_arguments(inputs, model)
    try:
        return model(*args, **kwargs)
    except RuntimeError as error:
        own = {p.dtype for p in model.parameters() if p.is_floating_point()}
        given = {t.dtype for t in tensors_in((args, kwargs)) if t.is_floating_point()}
        if not own or given <= own:
            raise
        have, want = (", ".join(sorted(map(str, d))) for d in (given, own))
        fix = "convert the data (x.float() in the dataset), or the model (model.double(), model.half())"
        raise DataError("inputs", f"they are {have}, the model's weights {want}: {str(error)[:100]}", fix) from error
