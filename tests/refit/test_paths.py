"""What stands behind a layer, and the order in which nodes run: seen in blocks as people write them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

import prunus
from prunus.refit import RepairConfig, repair
from prunus.refit.calls import LayerCall, layer_call
from prunus.refit.layers import refit_layers
from prunus.refit.lockstep import Lockstep
from prunus.refit.order import ordered
from prunus.refit.paths import path_behind
from prunus.runtime.copies import copied
from prunus.surgery.rewrite import captured_freely
from zoo import untidy

KEPT = [0, 2, 3, 5, 6]


def captured(model: nn.Module, plan: prunus.Plan, x: Tensor) -> tuple[list[fx.Node], dict[fx.Node, LayerCall]]:
    module = captured_freely(model, plan, x[:2]).program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    nodes = list(module.graph.nodes)
    return nodes, {n: c for n in nodes if n.op == "call_function" and (c := layer_call(n)) is not None}


class Next(nn.Module):
    """As ConvNeXt's blocks are, with channels first: the scale is brought into shape after the layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up, self.down, self.gamma = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 8, 1), nn.Parameter(torch.rand(8) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(nn.functional.gelu(self.up(self.depthwise(x))))
        return x + y * self.gamma.view(1, -1, 1, 1)


def test_a_scale_that_is_computed_of_stored_tensors_is_looked_through() -> None:
    torch.manual_seed(0)
    model, x = untidy(Next()).double().eval(), torch.randn(60, 3, 12, 12, dtype=torch.float64)
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:2]), {"up": range(14)})
    nodes, calls = captured(model, plan, x)
    paths = {n: path_behind(n) for n in calls}
    (down,) = (n for n, c in calls.items() if c.name == "down")
    assert len(paths[down].sums) == 1
    order, _ = ordered(nodes, paths)
    assert len(paths[down].stored) == 1
    assert all(order.index(n) < order.index(down) for n in paths[down].stored)
    done = repair(model, plan, [(x,)], progress=False)
    assert [r.layer for r in done.refits] == ["down"]
    lost = [
        float((prunus.apply_(m, plan, x[:2])(x) - model(x)).detach().square().mean())
        for m in (copied(model), done.model)
    ]
    assert lost[1] < 0.5 * lost[0]


class Downsample(nn.Module):
    """As torchvision writes it: the layer of the shortcut comes after those of the main branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.short = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1, 2, bias=False)
        self.conv1, self.conv2 = nn.Conv2d(8, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.stem(x))
        out = self.conv2(torch.relu_(self.conv1(x)))
        out += self.short(x)
        return torch.relu_(out)


def test_the_layer_of_the_shortcut_is_refitted_before_the_last_of_the_branch() -> None:
    torch.manual_seed(0)
    model, x = Downsample(), torch.randn(40, 3, 9, 9)
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:2]), {"stem": KEPT})
    done = repair(model, plan, [(x,)], progress=False)
    assert [r.layer for r in done.refits] == ["conv1", "short", "conv2"]
    nodes, calls = captured(model, plan, x)
    order, known = ordered(nodes, {n: path_behind(n) for n in calls})
    assert {calls[n].name: len(steps) for n, steps in known.items()} == {"conv2": 1}
    assert sorted(order, key=nodes.index) == nodes
    place = {n: i for i, n in enumerate(order)}
    assert all(place[n] < place[m] for m in nodes for n in m.all_input_nodes)


def test_what_is_added_in_place_is_not_written_to_the_dense_network() -> None:
    """The other side of the sum is what is written to; looking along the path must not do it."""

    class Shortcut(Downsample):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu_(self.stem(x))
            out = self.short(x)
            out += self.conv2(torch.relu_(self.conv1(x)))
            return torch.relu_(out)

    torch.manual_seed(0)
    model, x = Shortcut(), torch.randn(40, 3, 9, 9)
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:2]), {"stem": KEPT})
    run = Lockstep(captured_freely(model, plan, x[:2]), plan, model)
    with torch.no_grad(), run.in_format():
        told = refit_layers(run, [x], plan, RepairConfig(), 0, False)
        torch.testing.assert_close(run.outputs(0)[0], model(x), rtol=1e-4, atol=1e-5)
    assert [r.layer for r in told] == ["short", "conv1", "conv2"]
