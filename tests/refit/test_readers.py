"""Refitted layers of every kind equal least squares done slowly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from slowly import fitted_slowly
from torch import Tensor, fx, nn

from prunus.refit.calls import LayerCall, layer_call, read_places, regressors, rows_of
from prunus.refit.least_squares import Channels, LeastSquares


class Addmm(nn.Module):
    """As GPT-2's layers are: the weight is [inputs, outputs]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def convolution(kind: type[nn.Module], *sizes: Any, **options: Any) -> tuple[nn.Module, tuple[int, ...]]:
    spatial = int(kind.__name__[-2])
    return kind(*sizes, **options), (30, sizes[0], *(7, 6, 5)[:spatial])


LAYERS = {
    "linear": lambda: (nn.Linear(5, 4), (60, 5)),
    "linear on tokens": lambda: (nn.Linear(5, 4), (10, 3, 5)),
    "addmm": lambda: (Addmm(), (60, 5)),
    "1d": lambda: convolution(nn.Conv1d, 4, 3, 3, stride=2, padding=1),
    "1d, same": lambda: convolution(nn.Conv1d, 4, 3, 4, padding="same"),
    "2d": lambda: convolution(nn.Conv2d, 4, 3, 3),
    "2d, uneven": lambda: convolution(nn.Conv2d, 3, 2, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "2d, same": lambda: convolution(nn.Conv2d, 3, 2, (2, 3), padding="same", dilation=(1, 2)),
    "2d, valid": lambda: convolution(nn.Conv2d, 3, 2, 2, padding="valid"),
    "2d, grouped": lambda: convolution(nn.Conv2d, 4, 6, 3, padding=1, groups=2),
    "2d, depthwise": lambda: convolution(nn.Conv2d, 4, 4, 3, padding=1, groups=4),
    "2d, multiplied": lambda: convolution(nn.Conv2d, 3, 6, 3, stride=2, groups=3),
    "3d": lambda: convolution(nn.Conv3d, 3, 2, 2, stride=(1, 2, 1), padding=(0, 1, 0)),
    "transposed 1d": lambda: convolution(nn.ConvTranspose1d, 3, 2, 3, stride=2, padding=1, output_padding=1),
    "transposed 2d": lambda: convolution(nn.ConvTranspose2d, 3, 2, 3, stride=2, padding=(0, 1), dilation=(1, 2)),
    "transposed 2d, grouped": lambda: convolution(nn.ConvTranspose2d, 4, 6, 2, stride=2, groups=2),
    "transposed 3d": lambda: convolution(nn.ConvTranspose3d, 2, 2, 2, stride=2),
}


def captured(layer: nn.Module, x: Tensor) -> tuple[LayerCall, fx.GraphModule]:
    module = torch.export.export(layer, (x,)).module()
    assert isinstance(module, fx.GraphModule)
    call = next(c for n in module.graph.nodes if n.op == "call_function" and (c := layer_call(n)) is not None)
    return call, module


def called(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Without the bias; channels along dimension 1."""
    with torch.no_grad():
        given = {"weight": weight} | ({} if layer.bias is None else {"bias": torch.zeros_like(layer.bias)})
        made = torch.func.functional_call(layer, given, (x,))
    return made.movedim(-1, 1) if isinstance(layer, nn.Linear) else made


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_refitted_layer_equals_least_squares_done_slowly(name: str, constant: bool, masked: bool) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64)
    old = layer.weight.detach()
    call, _ = captured(layer, x)
    made = layer(x).detach()
    wanted = torch.randn_like(made)
    dim_in, dim_out = call.channel_dim(x, old), call.channel_dim(made, old)
    inputs, outputs = torch.ones(x.shape[dim_in]) > 0, torch.ones(made.shape[dim_out]) > 0
    inputs[1] = call.groups > 1  # which inputs of a group go is another question than which groups do
    outputs[-1] = False
    x = x * inputs.reshape([-1 if d == dim_in else 1 for d in range(x.dim())])
    support = torch.rand(old.shape) < 0.6 if masked else None
    problem = LeastSquares(call, old, Channels(inputs, outputs), constant, support=support)
    rows = torch.arange(rows_of(call, made, old).shape[0])
    place, inside = read_places(call, old, x, made, rows)
    read = regressors(call, x, old, place, inside, problem.inputs)
    problem.add(read, problem.outputs(rows_of(call, wanted, old)), torch.zeros(len(rows)) > 0)
    found = problem.solve((1e-13,))

    axis = 1 if call.kind == "linear" or (call.kind.startswith("conv") and not call.transposed) else 0
    channels = inputs if call.groups == 1 else torch.ones(old.shape[axis]) > 0
    present = channels.reshape([-1 if d == axis else 1 for d in range(old.dim())]).expand(old.shape)
    if support is not None:
        present, old = present & support, old * support
    target = wanted.movedim(dim_out, 1)
    weight, added = fitted_slowly(lambda w: called(layer, x, w), old, target, present, outputs, constant)
    assert found.weight is not None
    torch.testing.assert_close(found.weight, weight, rtol=1e-5, atol=1e-5)
    assert found.constant is not None
    torch.testing.assert_close(found.constant, added, rtol=1e-5, atol=1e-5)


def test_channels_of_a_group_that_go_keep_their_weights() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, groups=2).double()
    x = torch.randn(20, 4, 6, 6, dtype=torch.float64)
    inputs = torch.tensor([True, False, True, True])
    x = x * inputs[:, None, None]
    call, _ = captured(layer, x)
    old, made = layer.weight.detach(), layer(x).detach()
    wanted = F.conv2d(x, torch.randn_like(old), groups=2)
    problem = LeastSquares(call, old, Channels(inputs, torch.ones(6) > 0), True)
    rows = torch.arange(20 * 16)
    place, inside = read_places(call, old, x, made, rows)
    read = regressors(call, x, old, place, inside, problem.inputs)
    problem.add(read, problem.outputs(rows_of(call, wanted, old)), rows % 5 == 4)
    found = problem.solve((1e-13,))
    assert found.weight is not None
    assert torch.equal(found.weight[:3, 1], old[:3, 1])
    assert found.after < 1e-10
    torch.testing.assert_close(F.conv2d(x, found.weight, groups=2), wanted, rtol=1e-5, atol=1e-5)
