"""Packed condensed weights: the same products, a copy that follows its source, and nothing in the state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prunus.kernels import products as loops
from prunus.kernels.packed import ROWS, block_for, pack, packed_product
from prunus.sparse.layers import CondensedLinear

pytest.importorskip("numba")


def weight(rows: int, kept: int, inputs: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Values [rows, kept] and ascending columns from `first` on."""
    index = torch.stack([first + torch.randperm(inputs - first)[:kept].sort().values for _ in range(rows)])
    return torch.randn(rows, kept), index


def layer(rows: int = 150, kept: int = 60, inputs: int = 400) -> CondensedLinear:
    torch.manual_seed(0)
    made = CondensedLinear(*weight(rows, kept, inputs), inputs, torch.randn(rows)).requires_grad_(False)
    assert block_for(64, made.values, made.index, inputs) is not None
    return made


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index_as", [torch.int16, torch.int32, torch.int64])
def test_the_product_is_that_of_the_dense_weight(kind: torch.dtype, index_as: torch.dtype) -> None:
    """Tiles, blocks, vectors that are not full; rows with nothing in a block."""
    torch.manual_seed(0)
    for rows, kept, inputs, columns in ((1, 1, 40, 7), (16, 5, 64, 16), (129, 30, 64, 16), (300, 9, 73, 100)):
        values, index = weight(rows, kept, inputs)
        values, columns_of = values.to(kind), index.to(index_as)
        dense = torch.zeros(rows, inputs).scatter_(1, index, values.float())
        packed = pack(values, columns_of, inputs, columns)
        for examples in (1, 16, 33, 48, 64, 65, 97, 130):
            x = torch.randn(inputs, examples).t()
            found = packed_product(x, values, columns_of, packed)
            assert torch.allclose(found, x @ dense.t(), rtol=1e-5, atol=1e-5)


def test_columns_beyond_a_short_are_what_they_were() -> None:
    values, index = weight(20, 50, 40_000, first=30_000)
    made = CondensedLinear(values, index, 40_000)
    assert made.index.dtype == torch.int16
    x = torch.randn(40, 40_000)
    found = packed_product(x, values, made.index, pack(values, made.index, 40_000, 512))
    assert torch.allclose(found, x @ made.dense_weight().detach().t(), atol=1e-4)


def test_a_packed_weight_is_the_weight_in_another_order() -> None:
    values, index = weight(200, 30, 90)
    packed = pack(values, index, 90, 32)
    assert packed.counts.shape == (2, 3, ROWS)
    by_row = packed.counts.sum(1).reshape(-1)
    assert torch.equal(by_row[:200], torch.full((200,), 30))
    assert not by_row[200:].any()
    at = 0
    for tile in range(2):
        for block in range(3):
            for o in range(ROWS):
                count, row = int(packed.counts[tile, block, o]), tile * ROWS + o
                if row < 200:
                    own = (index[row] >= 32 * block) & (index[row] < 32 * (block + 1))
                    assert torch.equal(packed.values[at : at + count], values[row, own])
                    assert torch.equal(packed.index[at : at + count], index[row, own])
                at += count
    assert at == 200 * 30


def test_a_layer_packs_only_where_it_pays() -> None:
    values, index = torch.randn(8, 40), torch.zeros(8, 40, dtype=torch.int16)
    assert block_for(32, values, index, 400) is None, "few examples"
    assert block_for(64, values, index, 256) is None, "the inputs lie in the first cache anyway"
    assert block_for(64, values, index, 10_000) is None, "hardly a weight of a row in a block"
    assert block_for(64, values, index, 400) == 128
    assert block_for(64, values, index, 600) == 256
    with torch.inference_mode():
        assert block_for(64, torch.randn(8, 40), index, 400) is None, "no version tells whether it has changed"


def test_the_copy_follows_the_weight() -> None:
    small = layer()
    x = torch.randn(64, 400)

    def right() -> bool:
        with torch.no_grad():
            found = small(x)
            return torch.allclose(found, x @ small.dense_weight().t() + small.bias, atol=1e-4)

    assert right()
    first = small._packed
    assert first is not None
    assert right()
    assert small._packed is first, "it is made once"
    with torch.no_grad():
        small.values.mul_(2)
    assert right()
    assert small._packed is not first
    small.load_state_dict(layer().state_dict())
    assert right()
    values, index = weight(150, 60, 400)
    with torch.no_grad():
        small.index.copy_(index)
    assert right()
    small.values = nn.Parameter(values)
    assert right()
    small.values.data = torch.randn(150, 60)
    assert right()
    optimizer = torch.optim.SGD([small.values.requires_grad_()], lr=0.1)
    small(x).square().mean().backward()
    optimizer.step()
    assert right()
    small.train().values.data.mul_(3)  # this write is counted nowhere
    small.eval()
    assert right()
    kept = small._packed
    small.eval()
    assert small._packed is kept, "nothing has changed"
    small.bfloat16().float()
    assert small._packed is None, "no memory is kept for what was"
    assert right()


def test_copies_have_their_own() -> None:
    small = layer()
    x = torch.randn(64, 400)
    with torch.no_grad():
        before = small(x)
        other = copy.deepcopy(small)
        assert other._packed is None
        other.values.mul_(2)
        assert not torch.allclose(other(x), before)
        assert torch.equal(small(x), before)
    assert list(small.state_dict()) == ["values", "bias", "index"]


def test_without_packing_the_answers_are_the_same() -> None:
    small = layer()
    x = torch.randn(100, 400)
    with torch.no_grad():
        packed = small(x)
        small.packs = False
        assert torch.allclose(small(x), packed, atol=1e-5)
        with torch.inference_mode():
            small.packs = True
            assert torch.equal(small(x), packed)


def test_threads_share_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small = layer(rows=4 * ROWS + 3)
    x = torch.randn(64, 400)
    with torch.no_grad():
        alone = small(x)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        monkeypatch.setattr(loops, "PRODUCTS_FOR_A_THREAD", 1)
        assert torch.equal(small(x), alone)
