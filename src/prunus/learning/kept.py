"""What learning made, as it is kept in a run folder: scores of units, and what went into a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.files.fingerprint import weights_digest
from prunus.files.steps import Steps
from prunus.graph.groups import ChannelGroup
from prunus.learning.findings import Scores
from prunus.learning.problem import Learning
from prunus.methods.base import Method, PosteriorMethod
from prunus.posteriors.base import Posterior
from prunus.runtime.processes import model_device

PLAIN = (bool, int, float, str)


def made_from(model: nn.Module, method: Method | None, learning: Learning, also: Mapping[str, Any]) -> dict[str, str]:
    """What goes into a loop, by kind: weights, data, loss, method, seed, and whatever else there is."""
    steps = learning.steps
    if steps is None:
        return {}
    return {
        "model": f"{type(model).__name__} ({weights_digest(model)})",
        "data": steps.digest_of(learning.loader.data),
        "loss": named(learning.loss_fn),
        "method": repr(method),
        "seed": str(learning.seed),
        "precision": f"{learning.precision} on {model_device(model).type}",
        "worth": repr(learning.worth),
        **{name: repr(value) for name, value in also.items()},
    }


def named(function: Any) -> str:
    """A function by its name, or an object with settings by these."""
    name = getattr(function, "__qualname__", None)
    if name is not None:
        return f"{getattr(function, '__module__', '')}.{name}"
    text = repr(function)
    return type(function).__qualname__ if " at 0x" in text else text


def scored_groups(groups: Sequence[ChannelGroup]) -> list[tuple[str, int]]:
    """Name and size of each group."""
    return [(g.name, g.units) for g in groups]


def kept_scores(steps: Steps | None, origin: Mapping[str, str], method: Method) -> Scores | None:
    """Scores that were learned before from the same, if they are there and are the same."""
    found = None if steps is None else steps.finished("scores", origin)
    if found is None:
        return None
    posteriors = {}
    if isinstance(method, PosteriorMethod):
        for name, stored in found["posteriors"].items():
            posteriors[name] = _posterior(method, len(found["values"][name]), stored)
            if not torch.equal(posteriors[name].score().detach().cpu(), found["values"][name]):
                return None  # a posterior that holds more than tensors and numbers
    return Scores(
        dict(found["values"]),
        posteriors,
        method.name,
        tuple(found["history"]),
        float(found["cost_exponent"]),
        replicas=dict(found["replicas"]),
    )


def keep_scores(steps: Steps | None, origin: Mapping[str, str], scores: Scores) -> None:
    """Keep what was learned, and no longer where its loops stood."""
    if steps is None:
        return
    made = {
        "values": dict(scores.values),
        "posteriors": {n: _stored(p) for n, p in scores.posteriors.items()},
        "history": list(scores.history),
        "cost_exponent": scores.cost_exponent,
        "replicas": dict(scores.replicas),
    }
    steps.finish("scores", origin, made)
    steps.forget("learning")


def _stored(posterior: Posterior) -> dict[str, Any]:
    settings = {n: v for n, v in vars(posterior).items() if type(v) in PLAIN and not n.startswith("_")}
    return {"state": dict(posterior.state_dict()), "settings": settings}


def _posterior(method: PosteriorMethod, units: int, stored: Mapping[str, Any]) -> Posterior:
    posterior = method.posterior(units).cpu()
    state: dict[str, Tensor] = dict(stored["state"])
    posterior.load_state_dict(state)
    for name, value in stored["settings"].items():
        if type(vars(posterior).get(name)) in PLAIN:
            setattr(posterior, name, value)
    return posterior
