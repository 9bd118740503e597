"""Which layers get a pattern inside their weights if nobody names them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from prunus.errors import ConfigError
from prunus.layers.submodules import Ignored, matching
from prunus.masks.patterns import takes_pattern


def maskable_layers(model: nn.Module, ignored: Sequence[Ignored] = ()) -> list[str]:
    """Names of the linear and convolution layers that get a pattern if nobody names them.

    All but the last, the first if it is a convolution (few weights that see the image itself), and those that an entry
    of `ignored` chooses. A first linear layer gets one: in a perceptron it holds most of the weights.

    Args:
        model: the network.
        ignored: modules, module types or name globs, as for `prune`; what lies below them is ignored too.

    Raises:
        ConfigError: an entry matches no such layer, or nothing is left.
    """
    weighted = [(n, m) for n, m in model.named_modules() if takes_pattern(m) or isinstance(m, nn.Embedding)]
    names = [n for n, m in weighted if takes_pattern(m)]
    left_out = matching(ignored, model)
    for chosen in ignored:
        if not matching([chosen], model) & set(names):
            where = f"ignored_layers entry {chosen!r}"
            raise ConfigError(where, "it matches no linear or convolution layer", "see analyze")
    edges = {names[-1]} if names else set()
    if len(names) > 2 and isinstance(weighted[0][1], nn.modules.conv._ConvNd):
        edges.add(names[0])
    found = [n for n in names if n not in edges and n not in left_out]
    if not found:
        raise ConfigError("model", "no layer is left to put a pattern on", "ignore fewer layers")
    return found
