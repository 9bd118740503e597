"""A frozen model: nothing learns, and its batch norms' gradients are those of torch, by one multiplication."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prunus.gates.frozen import affine_norms, frozen


def normed(dims: int, affine: bool) -> nn.Module:
    torch.manual_seed(dims)
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](5, affine=affine)
    model = nn.Sequential(norm, nn.Tanh())
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2.0)
    return model.eval()


def example(dims: int) -> Tensor:
    return torch.randn(4, 5, *[3] * dims, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_outputs_and_gradients_are_those_of_torch(dims: int, affine: bool) -> None:
    model, x = normed(dims, affine), example(dims).requires_grad_()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    expected = model(x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with affine_norms(model):
        found = model(x)
        (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert torch.equal(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_norms_are_called_by_keyword_too() -> None:
    model, x = normed(2, True), example(2).requires_grad_()
    norm = model.get_submodule("0")
    with frozen(model):
        assert torch.equal(norm(input=x), norm(x))


def test_norms_that_learn_or_move_are_left_to_torch() -> None:
    model, x = normed(2, True), example(2).requires_grad_()
    with affine_norms(model):
        model(x).square().sum().backward()
        assert model[0].weight.grad is not None
        assert model[0].weight.grad.abs().sum() > 0
        model.train()
        before = model[0].running_mean.clone()  # type: ignore[union-attr, operator]
        model(x)
        assert not torch.equal(model[0].running_mean, before)  # type: ignore[arg-type]


def test_a_frozen_model_comes_back_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[0].bias.requires_grad_(False)
    state, attributes = copy.deepcopy(model.state_dict()), set(vars(model[1]))
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training
        model(example(2))
    assert model.training
    assert model[1].training
    assert set(vars(model[1])) == attributes
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_wrong_shape_is_torchs_own_error() -> None:
    model = normed(2, True)
    with frozen(model), pytest.raises(ValueError, match="expected 4D input"):
        model(torch.zeros(2, 5, requires_grad=True))


def test_a_compiled_frozen_model_has_the_same_gradients() -> None:
    model, x = normed(2, True), example(2).requires_grad_()
    with frozen(model):
        (expected,) = torch.autograd.grad(model(x).square().sum(), x)
        compiled = torch.compile(model, backend="aot_eager")
        (found,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(found, expected)
