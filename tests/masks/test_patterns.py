"""Patterns: the constraint holds where it is meant, on every kind of layer, and what does not fit says what would."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.errors import ConfigError
from prunus.masks.patterns import Form, Layer, Pattern
from prunus.masks.sampling import gumbel, largest


class Conv1D(nn.Module):
    """GPT-2's linear layer: x W with W [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


LAYERS: dict[str, Layer] = {
    "linear": nn.Linear(24, 6),
    "GPT-2's": Conv1D(24, 6),  # type: ignore[dict-item]
    "conv1d": nn.Conv1d(8, 6, 3),
    "conv2d": nn.Conv2d(8, 6, 3),
    "conv3d": nn.Conv3d(8, 4, 2),
    "grouped": nn.Conv2d(16, 6, 3, groups=2),
    "transposed": nn.ConvTranspose2d(8, 6, 3),
    "transposed grouped": nn.ConvTranspose2d(16, 6, 3, groups=2),
}
TEXTS = [
    "weight 25%",
    "kernel 50%",
    "filter 50%",
    "tile 4 50%",
    "2:4",
    "weight 25% shared",
    "kernel 50% shared",
    "2:4 shared",
]


def drawn(text: str, layer: Layer) -> tuple[torch.Tensor, int, int]:
    layout = Pattern.parse(text).layout(layer, "layer")
    mask = largest(gumbel(layout.rows, layout.n, (5,)), layout.k)
    return layout.form.rows(layout.on_weight(mask).expand(layer.weight.shape)), layout.n, layout.k


def expected_counts(text: str, mask: torch.Tensor, k: int, n: int) -> bool:
    """The constraint of the text, checked on the weight's mask itself, filter by filter."""
    filters, inputs, taps = mask.shape
    kind = text.split()[0]
    if kind == "weight":
        return bool((mask.sum((1, 2)) == k).all())
    if kind == "filter":
        return mask.any(2).any(1).sum() == k and bool((mask.all(2).all(1) == mask.any(2).any(1)).all())
    if kind == "2:4":
        return bool((mask.reshape(filters, inputs // 4, 4, taps).sum(2) == 2).all())
    assert bool((mask == mask[:, :, :1]).all())
    if kind == "kernel":
        return bool((mask[:, :, 0].sum(1) == k).all())
    return bool((mask[:, :, 0].reshape(filters, 4, n).sum(2) == k).all())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_draw_keeps_exactly_k_in_every_filter(kind: str, text: str) -> None:
    layer = LAYERS[kind]
    mask, n, k = drawn(text, layer)
    assert expected_counts(text, mask, k, n)
    if "shared" in text:
        assert bool((mask == mask[:1]).all())
    elif "filter" not in text:
        assert not bool((mask == mask[:1]).all())


def test_taps_inside_every_kernel() -> None:
    mask, _, _ = drawn("tap 3/9", LAYERS["conv2d"])
    assert bool((mask.sum(2) == 3).all())
    assert not bool((mask == mask[:, :1]).all())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_filter_of_the_form_is_what_one_output_channel_reads(kind: str) -> None:
    """Zeroing row f of [F, I, P] silences output channel f and nothing else (a scrambled reshape would not)."""
    layer = LAYERS[kind]
    form = Form.of(layer)
    filters = form.filters
    assert torch.equal(form.weight(form.rows(layer.weight)), layer.weight)
    spatial = len(layer.weight.shape) - 2
    wide = 24 if spatial == 0 else (layer.in_channels if isinstance(layer, nn.modules.conv._ConvNd) else 0)
    x = torch.randn(2, wide, *[5] * spatial)
    with torch.no_grad():
        before = layer(x)
        for f in range(filters):
            rows = form.rows(layer.weight).clone()
            rows[f] = 0
            old = layer.weight.detach().clone()
            layer.weight.copy_(form.weight(rows))
            changed = (layer(x) - before).abs().transpose(0, 1).reshape(filters, -1).amax(1) > 1e-6
            layer.weight.copy_(old)
            assert changed.nonzero().reshape(-1).tolist() == [f]


@pytest.mark.parametrize("text", [*TEXTS, "tap 3/9"])
def test_values_of_rows_are_summed_over_what_a_choice_decides(text: str) -> None:
    layer = LAYERS["conv2d"]
    layout = Pattern.parse(text).layout(layer, "layer")
    values = torch.rand(layout.form.filters, layout.form.inputs, layout.form.taps, dtype=torch.float64)
    rows = layout.rows_of(values)
    assert rows.shape == (layout.rows, layout.n)
    probe = torch.rand(layout.rows, layout.n, dtype=torch.float64)
    assert torch.allclose((layout.spread(probe) * values).sum(), (probe * rows).sum())


@pytest.mark.parametrize("text", [*TEXTS, "tap 3/9", "weight 39/784", "tile 4 2/8", "1:4"])
def test_a_pattern_prints_as_it_reads(text: str) -> None:
    pattern = Pattern.parse(text)
    assert str(pattern) == text
    assert Pattern.parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "weights 10%",
        "weight",
        "weight 0%",
        "weight 120%",
        "5:4",
        "0:4",
        "kernel 9/8",
        "tile 0 2/8",
        "filter 50% shared",
        "2 4",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="pattern"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    ("text", "layer", "message"),
    [
        ("kernel 8/64", nn.Conv2d(32, 4, 3), "row has 32.*4/32"),
        ("2:4", nn.Conv2d(3, 4, 3), "no multiple of 4.*2:3"),
        ("tile 4 2/8", nn.Linear(30, 4), "4 tiles.*3 tiles"),
        ("weight 1%", nn.Linear(8, 4), "none.*12.5%"),
    ],
)
def test_what_does_not_fit_names_the_layer_and_what_would(text: str, layer: Layer, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)'conv7'.*{message}"):
        Pattern.parse(text).layout(layer, "conv7")
