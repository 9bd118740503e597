"""Layers in a captured graph: products with stored weights become calls of linear and convolution modules again.

The names of the parameters stay. A graph with layers can be looked at, gated, masked and pruned like any other model.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from prunus.graph.engine import operation

LAYERS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear, "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d, "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}  # fmt: skip
SETTINGS = {
    "conv": ("stride", "padding", "dilation", "groups"),
    "conv_transpose": ("stride", "padding", "output_padding", "groups", "dilation"),
}
"""Arguments behind (input, weight, bias), in the order of torch's operations."""


def give_layers_(root: nn.Module, graph: fx.Graph) -> None:
    """Turn every product whose weight and bias are `<path>.weight` and `<path>.bias` of a bare module into a layer.

    Args:
        root: the module that holds the graph's tensors; its bare modules are replaced.
        graph: the captured graph, changed in place.
    """
    uses: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            uses.setdefault(str(node.target).rpartition(".")[0], []).extend(node.users)
    for path, users in uses.items():
        kinds = {_settings(user, path) for user in users}
        if not path or None in kinds or len(kinds) != 1:
            continue
        layer = _layer(root, path, kinds.pop())
        if layer is None:
            continue
        owner, _, attribute = path.rpartition(".")
        setattr(root.get_submodule(owner), attribute, layer)
        for user in dict.fromkeys(users):
            with graph.inserting_before(user):
                call = graph.call_module(path, (user.args[0],))
            call.meta = dict(user.meta)
            user.replace_all_uses_with(call)
            graph.erase_node(user)
        for node in list(graph.nodes):
            if node.op == "get_attr" and str(node.target).rpartition(".")[0] == path:
                graph.erase_node(node)


def _settings(node: fx.Node, path: str) -> tuple[str, bool, tuple[Any, ...]] | None:
    """(operation, has a bias, its settings) of a product with the weight and bias of the module `path`, else None."""
    name = operation(node) if node.op == "call_function" else ""
    if name not in LAYERS or node.kwargs or len(node.args) < 2 or not isinstance(node.args[0], fx.Node):
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    if _read(node.args[1]) != f"{path}.weight" or _read(bias) not in (None, f"{path}.bias"):
        return None
    if bias is not None and _read(bias) is None:
        return None
    settings = tuple(tuple(a) if isinstance(a, list) else a for a in node.args[3:])
    if any(isinstance(s, fx.Node) for a in settings for s in (a if isinstance(a, tuple) else (a,))):
        return None
    return name, bias is not None, settings


def _read(argument: Any) -> str | None:
    return str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else None


def _layer(root: nn.Module, path: str, kind: tuple[str, bool, tuple[Any, ...]] | None) -> nn.Module | None:
    assert kind is not None
    name, biased, given = kind
    held = root.get_submodule(path)
    wanted = {"weight", "bias"} if biased else {"weight"}
    own = {n for n, p in held._parameters.items() if p is not None}
    if own != wanted or any(b is not None for b in held._buffers.values()) or held._modules:
        return None
    weight = held._parameters["weight"]
    assert weight is not None
    if name == "linear":
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], biased, device="meta")
    else:
        transposed = name.startswith("conv_transpose")
        settings = dict(zip(SETTINGS["conv_transpose" if transposed else "conv"], given, strict=False))
        settings = {k: v[0] if isinstance(v, tuple) and len(v) == 1 else v for k, v in settings.items()}
        groups = settings.get("groups", 1)
        rows, columns = weight.shape[0], weight.shape[1] * groups
        inside, outside = (rows, columns) if transposed else (columns, rows)
        layer = LAYERS[name](inside, outside, tuple(weight.shape[2:]), bias=biased, device="meta", **settings)
    for attribute in wanted:
        layer._parameters[attribute] = held._parameters[attribute]
    layer.training = held.training
    return layer
