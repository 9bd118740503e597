"""Operations that weights go through before they are contracted: weight norm, spectral norm."""

from __future__ import annotations

from torch import fx

from prunus.graph.engine import Engine, Result, argument, meta_shape, operation
from prunus.graph.groups import Norm
from prunus.graph.labels import Value, owned
from prunus.graph.registry import rule

REMOVE = "make it permanent first (torch.nn.utils.parametrize.remove_parametrizations, or torch.nn.utils.remove_{})"


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(engine: Engine, node: fx.Node) -> Result:
    """`(v, g, dim)`: g v / |v|, the norm over all dimensions but `dim`. What of it is removed is given back to g."""
    v, g = engine.value(node.args[0]), engine.value(node.args[1])
    dim = int(argument(node, 2, "dim", 0))
    value = engine.combine([v, g], v.shape, node)
    if v.parameter is None or g.parameter is None or not _scales(v, g, dim):
        why = f"weight norm of computed tensors: {REMOVE.format('weight_norm')}"
        engine.lock([*v.planes, *g.planes], why, node)
    else:
        engine.norms.append(Norm(v.parameter, g.parameter, dim))
    return [value, Value(g.shape, list(g.planes))] if isinstance(node.meta["val"], tuple | list) else value


def _scales(v: Value, g: Value, dim: int) -> bool:
    """True if g holds one length for each slice of v along `dim` (none: for all of it)."""
    return [s for s in g.shape if s > 1] == [s for s in (v.shape[dim : dim + 1] if dim >= 0 else ()) if s > 1]


@rule("mv", "dot", "vdot", rows=True)
def matrix_vector(engine: Engine, node: fx.Node) -> Result:
    """A vector's product with a matrix or a vector: over stored tensors, the largest singular value of a weight."""
    values = [engine.value(n) for n in node.all_input_nodes]
    why = f"no rule for {operation(node)}"
    if all(v.stored is not None for v in values):
        why = f"spectral norm is a number of the whole weight: {REMOVE.format('spectral_norm')}"
    summed = [p for v in values for p in v.planes if owned(p) == v.ndim - 1]
    engine.lock(summed if operation(node) == "mv" else [p for v in values for p in v.planes], why, node)
    engine.lock_rows(values, node)
    kept = [p.squeeze(-1) for p in values[0].planes if owned(p) == 0 and values[0].ndim == 2]
    return Value(meta_shape(node.meta["val"]), kept)
