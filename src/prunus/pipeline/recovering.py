"""Recovery as a step of `compress`: batch norm where it helps, then fine-tuning, judged on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn

from prunus.data.datasets import DataSource
from prunus.data.evaluation import Evaluation, judged_by
from prunus.errors import DataError, PruneError
from prunus.files.fingerprint import weights_digest
from prunus.files.stagefile import Checkpoint
from prunus.files.steps import Steps
from prunus.learning.kept import named
from prunus.pipeline.settings import silent
from prunus.recovery.batchnorm import reestimate_if_better
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import Epoch, FinetuneResult, finetune
from prunus.runtime.copies import copied
from prunus.runtime.progress import Say

STAGES = ("one_shot", "batch_norm", "recovered")
"""What a recovery judges."""
NEAR = 0.7
"""Of the dense network's accuracy: from there on more is forgotten by large steps than is learned."""
LOWERED = 2
"""How often a recovery that diverges starts again with a tenth of its learning rate, where nobody said one."""


def judged_once(
    steps: Steps | None, judge: Callable[[nn.Module, Any], Evaluation], dense: nn.Module, data: DataSource
) -> Evaluation:
    """The dense network on the validation split, measured or as it was measured before."""
    origin = {} if steps is None else _origin(dense, dense, data, None, (), steps)
    kept = None if steps is None else steps.finished("dense", origin)
    if kept is not None:
        return Evaluation(**kept)
    found = judge(dense, data.validation)
    if steps is not None:
        steps.finish("dense", origin, vars(found))
    return found


def recover(
    smaller: nn.Module,
    dense: nn.Module,
    data: DataSource,
    recovery: FinetuneConfig | None,
    batches: Iterable[Any],
    judged: dict[str, Evaluation],
    recovered: list[Epoch],
    progress: bool = False,
    say: Say = silent,
    steps: Steps | None = None,
) -> PruneError | None:
    """Recover in place; on the validation split the score never ends below what it started from.

    Args:
        smaller: the pruned network.
        dense: what it is taught by.
        data: as for `compress`.
        recovery: None for batch norm alone.
        batches: of training data, for new statistics.
        recovered: gets the epochs.
        judged: gets `one_shot`, `batch_norm` and, if it comes so far, `recovered`.
        progress: show a bar.
        say: is told about every step.
        steps: where a recovery of the same network is kept, finished or under way.

    A fine-tuning that diverges starts again with a tenth of the learning rate, if that is `auto`.

    What is better on the validation split is kept: of statistics what has less loss, of epochs what has the better
    score (less loss among equals), the network as it came included.

    Returns:
        What stopped the fine-tuning, if something did; the network is then as it was before it.
    """
    origin = _origin(smaller, dense, data, recovery, batches, steps)
    kept = None if steps is None else steps.finished("recovered", origin)
    if kept is not None:
        smaller.load_state_dict(kept["weights"])
        judged |= {stage: Evaluation(**found) for stage, found in kept["judged"].items()}
        recovered += [Epoch(**epoch) for epoch in kept["epochs"]]
        return None
    failed = _recover(smaller, dense, data, recovery, batches, judged, recovered, progress, say, steps)
    if steps is not None and failed is None:
        made = {
            "weights": _weights(smaller),
            "judged": {stage: vars(found).copy() for stage, found in judged.items() if stage in STAGES},
            "epochs": [asdict(epoch) for epoch in recovered],
        }
        steps.finish("recovered", origin, made)
        steps.forget("recovery")
    return failed


def _origin(
    smaller: nn.Module,
    dense: nn.Module,
    data: DataSource,
    recovery: FinetuneConfig | None,
    batches: Iterable[Any],
    steps: Steps | None,
) -> dict[str, str]:
    """What goes into a recovery."""
    if steps is None:
        return {}
    return {
        "model": weights_digest(smaller),
        "teacher": weights_digest(dense),
        "data": " ".join(steps.digest_of(part) for part in (data.train, data.validation)),
        "batches": str(getattr(batches, "batch_size", "")),
        "settings": repr(recovery),
        "loss": f"{named(data.loss_fn)} of {data.outputs}",
        "metric": "" if data.metric is None else data.metric.name,
    }


def _recover(
    smaller: nn.Module,
    dense: nn.Module,
    data: DataSource,
    recovery: FinetuneConfig | None,
    batches: Iterable[Any],
    judged: dict[str, Evaluation],
    recovered: list[Epoch],
    progress: bool,
    say: Say,
    steps: Steps | None,
) -> PruneError | None:
    judge, given = judged_by(data, dense), _weights(smaller)

    def loss(present: nn.Module) -> float:
        stage = "batch_norm" if "one_shot" in judged else "one_shot"
        judged[stage] = judge(present, data.validation)
        return judged[stage].loss

    better = _reestimated(smaller, batches, loss, judged, say)
    start = judged["batch_norm" if better else "one_shot"]
    say(f"one-shot: {judged['one_shot']}; batch norm re-estimated: {judged['batch_norm']}")
    if not better:
        say("the old statistics are better on the validation split: they stay")
    if recovery is None:
        return None
    whole = judged["dense"] if "dense" in judged else judge(dense, data.validation)
    config, lowered = _fitting(recovery, better, start, whole, say), 0
    while True:
        checkpoint = None
        if steps is not None:
            here = steps.path("recovery", _origin(smaller, dense, data, config, batches, steps))
            checkpoint = Checkpoint(here, steps.resume, steps)
        done = _finetuned(smaller, dense, data, config, progress, checkpoint)
        if not isinstance(done, DataError) or recovery.lr != "auto" or lowered == LOWERED:
            break
        config, lowered = replace(config, lr=config.peak / 10), lowered + 1
        say(f"{done.what}: again from the network as it came, learning rate {config.peak:.3g}")
    if isinstance(done, PruneError):
        say(f"recovery failed, and the network is saved as it was pruned: {done.what}")
        return done
    judged["recovered"], stays = judge(smaller, data.validation), done.best_epoch == 0
    recovered += done.history
    if judged["one_shot"].better_than(judged["recovered"]):  # statistics are compared by loss, epochs by accuracy
        smaller.load_state_dict(given)
        judged["recovered"], stays = judged["one_shot"], True
    say(f"recovered: {judged['recovered']}" + "; nothing was better than the network as it came, which stays" * stays)
    return None


def _reestimated(
    smaller: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module], float],
    judged: dict[str, Evaluation],
    say: Say,
) -> bool:
    """Whether new statistics are better; where data or network allow none, the old ones stay."""
    try:
        return reestimate_if_better(smaller, batches, loss, num_batches=64)
    except PruneError as error:
        if "one_shot" not in judged:
            raise
        judged["batch_norm"] = judged["one_shot"]
        say(f"no new batch norm statistics: {error.what}; {error.fix}")
        return False


def _fitting(recovery: FinetuneConfig, better: bool, start: Evaluation, whole: Evaluation, say: Say) -> FinetuneConfig:
    """What `auto` means for a network that starts there."""
    if not better and recovery.batch_norm == "auto":
        recovery = replace(recovery, batch_norm="compensated")
    if start.metric == whole.metric == "accuracy" and start.score >= NEAR * whole.score:
        recovery = recovery.near()
        say(f"near the dense network: learning rate {recovery.peak:.3g}, weight of blocks {recovery.block_weight:g}")
    return recovery


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _finetuned(
    smaller: nn.Module,
    dense: nn.Module,
    data: DataSource,
    recovery: FinetuneConfig,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> FinetuneResult | PruneError:
    """Recover in place. What stopped it, if something did; the network is then as it was before."""
    before = _weights(smaller)
    try:
        return finetune(smaller, data, recovery, teacher=copied(dense), progress=progress, checkpoint=checkpoint)
    except PruneError as error:
        smaller.load_state_dict(before)
        return error
