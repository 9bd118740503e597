"""`prune_streamed()`: a transformers model of like layers pruned and repaired layer by layer, from shards to shards."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import as_batches
from prunus.errors import ConfigError
from prunus.files.atomic import StrPath, check_free, check_writable
from prunus.files.shards import INDEX, Shards
from prunus.files.steps import Steps
from prunus.formats.pretrained import TOKENIZER_FILES
from prunus.graph.groups import ChannelGroup
from prunus.graph.trace import trace
from prunus.layers.submodules import Ignored
from prunus.learning.findings import Scores
from prunus.methods.base import Method, WeightCriterion
from prunus.methods.registry import resolve
from prunus.models.huggingface import from_configuration, without_parameters
from prunus.pipeline.planning import make_plan, prunable_groups, score
from prunus.plan.allocation import Allocation
from prunus.plan.plan import Plan
from prunus.plan.request import Target, check, requested
from prunus.refit.calibration import first_examples
from prunus.refit.config import RepairConfig
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed
from prunus.runtime.progress import progress_bar
from prunus.runtime.shown import Shown
from prunus.streaming.layerlist import LayerList, layer_list
from prunus.streaming.names import stored_names
from prunus.streaming.onelayer import fill_
from prunus.streaming.step import LayerReport
from prunus.streaming.walk import Walk, walked
from prunus.surgery.configuration import expressed
from prunus.surgery.cut import check_plan, cut_


@dataclass(frozen=True, repr=False)
class Streamed(Shown):
    """What `prune_streamed` wrote.

    Attributes:
        folder: what `from_pretrained` loads.
        plan: what stays.
        scores: of every unit; None where the plan was given.
        layers: what became of each layer, in order.
    """

    folder: Path
    plan: Plan
    scores: Scores | None = field(repr=False)
    layers: tuple[LayerReport, ...]

    def line(self) -> str:
        """What the plan keeps, and how exactly that was proven."""
        return f"{self.plan.line()}, {len(self.layers)} layers, proven to {self.max_error:.1e}"

    @property
    def max_error(self) -> float:
        """Largest difference of a cut layer from the masked one."""
        return max((layer.proof for layer in self.layers), default=0.0)

    def explain(self) -> str:
        """The plan, and by layer what repair won back and how far the network is from the dense one there."""
        head = f"{'layer':<48} {'before':>9} {'after':>9} {'won back':>9}"
        lines = [self.plan.explain(), "", head, "-" * len(head)]
        for layer in self.layers:
            for r in layer.refits:
                won = r.reason or f"{r.won_back:>9.1%}"
                lines.append(f"{r.layer:<48} {r.before:>9.2%} {r.after:>9.2%} {won}")
            lines.append(f"{layer.name:<48} hidden states {layer.apart:.2%} apart, proven to {layer.proof:.1e}")
        return "\n".join([*lines, f"written to {self.folder}"])


@entry()
def prune_streamed(
    folder: StrPath,
    out: StrPath,
    *,
    target: Target | None = None,
    plan: Plan | None = None,
    data: Iterable[Any],
    method: Method | str = "l2",
    repair: bool | RepairConfig = True,
    ignored_layers: Sequence[Ignored] = (),
    allocation: Allocation | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> Streamed:
    """Prune and repair a transformers model whose weights never lie in memory together.

    The model is analysed and planned from its configuration. Then the hidden states of the calibration batches go
    through it layer by layer, in the dense and in the smaller network: a layer is read from the shards, refitted as
    `repair` does, cut, compared with the masked layer on what came to it, and written. Memory holds one layer, what
    repair needs for its largest weight (8 bytes times the square of its inputs, about four times), and the hidden
    states; embeddings are read by the rows that are looked up. It computes in fp32 (fp64 where weights are), whatever
    format the weights have; sums of repair are fp64. New weights are rounded to the format of the folder.

    Args:
        folder: of `save_pretrained`: config.json and safetensors weights, in one file or in shards.
        out: folder to write, which `from_pretrained` of the model's own class loads; without config.json it is
            unfinished.
        target: as for `prune`: a budget that is counted, a fraction, or counts by hand.
        plan: what stays, instead of a target; made for the model of this configuration.
        data: batches of inputs (token ids); the first `RepairConfig.examples` examples are looked at.
        method: a criterion on weights (`l2`, `l1`, `fpgm`, `random`).
        repair: as for `prune`.
        ignored_layers: as for `prune`.
        allocation: as for `prune`; by default `uniform`, since a configuration has one number for all layers.
        seed: of what is random: scores of `random`, and the rows that repair looks at.
        resume: go on in an unfinished `out` after its last whole layer, if it was made of the same.
        progress: show a progress bar where there is a terminal.

    Returns:
        The folder, the plan, and what became of every layer.

    Raises:
        ConfigError: no such model, a method that needs more than weights, or widths that no configuration says.
        ArtifactError: the weights are incomplete or damaged, `out` is not empty, or the disk refuses.
        BudgetError: the target can't be met.
        TraceError: there is no list of like layers that are called one after another.
        SurgeryError: a cut layer is not what the masked one is.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        >>> LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).save_pretrained("dense")
        >>> texts = [(torch.randint(64, (8, 16)),)]
        >>> done = prunus.prune_streamed("dense", "smaller", target="params<=80%", data=texts)
        >>> LlamaForCausalLM.from_pretrained("smaller").config.intermediate_size < 64, done.max_error < 1e-4
        (True, True)
    """
    source, seed = Path(folder), as_seed(seed)
    config = (RepairConfig() if repair else None) if isinstance(repair, bool) else repair
    chosen = resolve(method)
    if not isinstance(chosen, WeightCriterion):
        what = "it needs the whole model in memory"
        raise ConfigError(f"method {chosen.name!r}", what, "use 'l2', 'l1', 'fpgm' or 'random', or give plan=")
    if (target is None) == (plan is None):
        raise ConfigError("target", "either a target or a plan says what goes", "give one of them")
    steps = Steps(Path(out) / "steps", resume=resume, every=0)
    where = check_free(out, overwrite=resume and steps.folder.is_dir())
    check_writable(where)
    shards = Shards(source)
    skeleton, example = from_configuration(str(source))
    listed = layer_list(skeleton, example)
    names = stored_names(skeleton, listed, shards)
    scores = None
    if plan is None:
        request = requested(target, allocation, method=chosen.name, takes=("budget", "ratio", "counts"), optional=False)
        graph = trace(skeleton, example)
        groups = _inside_layers(prunable_groups(graph, skeleton, ignored_layers), listed)
        if not groups:
            raise ConfigError("layers", "no group lies within one layer", "see prunus.trace(...).explain()")
        settings = request.allocation
        request = replace(
            request, allocation=replace(settings, scope="uniform") if settings.scope == "auto" else settings
        )
        check(request, graph, groups)
        scores = _scored(skeleton, listed, groups, chosen, shards, names, seed, progress)
        plan = make_plan(
            graph, groups, scores, budget=request.budget, pruning_ratio=request.ratio, kept_counts=request.counts,
            allocation=request.allocation, seed=seed,
        )  # fmt: skip
        del graph, groups
    else:
        check_plan(plan)
    smaller = _cut_skeleton(skeleton, plan, listed)
    said = expressed(smaller, plan)
    work = torch.float64 if torch.float64 in shards.dtypes.values() else torch.float32
    frame = without_parameters(str(source), work)
    examples = (config or RepairConfig()).examples
    batches = first_examples(frame, as_batches(data, frame), examples, seed, torch.device("cpu"))
    walk = Walk(frame, listed, shards, names, plan, config, seed)
    reports = walked(walk, batches, where, steps, progress)
    said.save_pretrained(where)
    for file in source.iterdir():
        if file.suffix in TOKENIZER_FILES and file.name != INDEX and not (where / file.name).exists():
            shutil.copy2(file, where)
    steps.clear()
    shutil.rmtree(steps.folder, ignore_errors=True)
    return Streamed(Path(out), plan, scores, reports)


def _inside_layers(groups: Sequence[ChannelGroup], listed: LayerList) -> list[ChannelGroup]:
    """Those all of whose tensors are of one layer."""
    found = []
    for group in groups:
        numbers = {listed.number_of(slot.tensor) for slot in group.slots}
        numbers |= {listed.number_of(f"{reader.module}.weight") for reader in group.readers}
        if len(numbers) == 1 and None not in numbers:
            found.append(group)
    return found


def _scored(
    skeleton: nn.Module, listed: LayerList, groups: Sequence[ChannelGroup], method: Method, shards: Shards,
    names: dict[str, str], seed: int, progress: bool,
) -> Scores:  # fmt: skip
    """Scores of all groups, with the weights of one layer at a time in the skeleton."""
    by_layer: dict[int, list[ChannelGroup]] = {}
    for group in groups:
        by_layer.setdefault(listed.number_of(group.slots[0].tensor) or 0, []).append(group)
    values: dict[str, Tensor] = {}
    layers = list(skeleton.get_submodule(listed.path).children())
    found = Scores({})
    with progress_bar(f"scores by {method.name}", len(by_layer), progress) as bar:
        for number, here in by_layer.items():
            empty = copy.deepcopy(layers[number])
            parent: Any = skeleton.get_submodule(listed.path)
            fill_(layers[number], listed.name(number), shards, names)
            found = score(skeleton, here, method, None, None, seed=seed)
            values |= found.values
            parent[number] = empty
            layers[number] = empty
            bar.advance()
    return replace(found, values=values)


def _cut_skeleton(skeleton: nn.Module, plan: Plan, listed: LayerList) -> nn.Module:
    """The smaller model on `meta`. Raises PlanError for another model's plan, ConfigError if more than layers go."""
    smaller = copy.deepcopy(skeleton)
    cut_(smaller, plan)
    outside = [n for n in plan.tensors if listed.number_of(n) is None]
    if plan.removal.gates or outside or plan.patterns:
        what = f"{outside[0]!r} is cut, which all layers share" if outside else "more goes than units inside layers"
        raise ConfigError("plan", what, "plan for groups inside layers, or use prunus.prune")
    return smaller
