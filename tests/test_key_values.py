"""Merged keys and values: exact where groups are turns of each other, the best in least squares elsewhere, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError, SurgeryError
from prunus.keyvalues.attentions import Attention, attentions
from prunus.keyvalues.pairs import Pairs, as_complex, as_real, layouts, pairs_of
from prunus.keyvalues.sets import best_sets
from prunus.keyvalues.squares import merged, squares

transformers = pytest.importorskip("transformers")
SHAPE: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
KINDS = ("Llama", "Qwen2", "Mistral", "Gemma", "StableLm", "Cohere")


def made(kind: str = "Llama", **more: Any) -> Any:
    torch.manual_seed(0)
    wide = {"hidden_size": 64} if kind == "StableLm" else {}  # a quarter of a head's dimensions follow positions
    config = getattr(transformers, f"{kind}Config")(**SHAPE | wide | more)
    if kind == "Gemma":
        config.head_dim = 4
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def texts() -> list[dict[str, Tensor]]:
    numbers = torch.randint(32, (8, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": part} for part in numbers.split(4)]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in texts()])


@torch.no_grad()
def turned_(model: Any, pairs: Pairs) -> None:
    """Groups 2 and 3 become those of 1 and 0, turned pair by pair in the keys and by any matrix in the values."""
    stream = torch.Generator().manual_seed(2)
    for attention in attentions(model):
        _, k, v, _ = attention.projections(model)
        size = (attention.groups, attention.width, -1)
        for new, old in ((2, 1), (3, 0)):
            turn = torch.complex(*torch.randn(2, attention.width // 2, 1, generator=stream).double())
            matrix = torch.randn(attention.width, attention.width, generator=stream)
            for tensor in (t for t in (k.weight, k.bias) if t is not None):
                heads = tensor.view(size)
                heads[new] = as_real(as_complex(heads[old], pairs) * turn, pairs)
            for tensor in (t for t in (v.weight, v.bias) if t is not None):
                heads = tensor.view(size)
                heads[new] = matrix @ heads[old]


@pytest.mark.parametrize(("kind", "repair"), [*((kind, False) for kind in KINDS), ("Llama", True), ("Cohere", True)])
def test_turns_of_each_other_are_one_exactly(kind: str, repair: bool, tmp_path: Path) -> None:
    model = made(kind)
    turned_(model, pairs_of(model, attentions(model), texts()[0]))
    dense = logits(model)
    result = prunus.merge_key_values(model, 2, texts(), repair=repair, progress=False)
    assert all(set(way.sets) == {(0, 3), (1, 2)} for way in result.ways)
    assert torch.equal(logits(model), dense)
    torch.testing.assert_close(logits(result.model), dense, rtol=1e-4, atol=1e-4 * float(dense.abs().max()))
    result.model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(result.model))
    start = texts()[0]["input_ids"][:, :4]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(start, **options), result.model.generate(start, **options))


def test_the_cache_is_smaller() -> None:
    result = prunus.merge_key_values(made(), 1, texts(), progress=False)
    cache = result.model(**texts()[0], use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[1] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_formats_stay(dtype: torch.dtype) -> None:
    result = prunus.merge_key_values(made().to(dtype), 2, texts(), progress=False)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert logits(result.model).isfinite().all()


def test_repair_brings_what_reads_the_heads_nearer() -> None:
    model, many = made(), [{"input_ids": torch.randint(32, (64, 12), generator=torch.Generator().manual_seed(3))}] * 8
    results = {r: prunus.merge_key_values(model, 1, many, repair=r, progress=False) for r in (False, True)}
    assert all(r.after <= r.before for r in results[True].refits)
    assert not [r.layer for r in results[True].refits if r.layer.endswith(("k_proj", "v_proj"))]
    far = {r: float((logits(found.model) - logits(model)).square().mean()) for r, found in results.items()}
    assert far[True] < 0.9 * far[False]


@given(st.integers(0, 2**20))
def test_no_other_key_and_value_loses_less(seed: int) -> None:
    """The loss is the closed form's, and no random key, value or turn has less."""
    stream = torch.Generator().manual_seed(seed)
    attention, pairs = Attention("attention", 4, 2, 4), next(layouts(4, []))
    projections = nn.ModuleDict({
        n: nn.Linear(6, 16 if n == "q_proj" else 8, bias=False) for n in ("q_proj", "k_proj", "v_proj")
    })  # fmt: skip
    projections["o_proj"] = nn.Linear(16, 6, bias=False)
    layer = _Layer(projections)
    for p in layer.parameters():
        p.data = torch.randn(p.shape, generator=stream)
    x = torch.randn(40, 6, generator=stream)
    found = squares(layer, [attention], pairs, [x], False)[0]
    best = merged(attention, found, projections["o_proj"].weight, (0, 1))
    k = as_complex(projections["k_proj"](x).view(40, 2, 4).permute(1, 2, 0), pairs).detach()
    v = projections["v_proj"](x).view(40, 2, 4).permute(1, 2, 0).double().detach()
    heads = projections["o_proj"].weight.detach().double().view(6, 2, 2, 4)

    def lost(key: Tensor, turns: Tensor, value: Tensor, reads: Tensor) -> tuple[float, float]:
        keys = ((k - turns[..., None] * key).abs().square().mean(-1) * found.queries).sum()
        whole = (k.abs().square().mean(-1) * found.queries).sum()
        wrong = v - torch.einsum("gwu,ut->gwt", reads, value)
        made, before = (torch.einsum("oghw,gwt->ghot", heads, t).square().sum() for t in (wrong, v))
        return float(keys / whole), float(made / before)

    key = (k * best.keys[..., None]).sum(0)
    value = torch.einsum("guw,gwt->ut", best.values, v)
    own = lost(key, best.queries.conj(), value, best.reads)
    assert sum(own) == pytest.approx(best.error, abs=1e-9)
    for _ in range(5):
        near = [t + 0.05 * torch.randn(t.shape, generator=stream, dtype=t.dtype) for t in (
            key, best.queries.conj(), value, best.reads)]  # fmt: skip
        assert all(a >= b - 1e-9 for a, b in zip(lost(*near), own, strict=True))


class _Layer(nn.Module):
    def __init__(self, attention: nn.ModuleDict) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.attention[n](x) for n in ("q_proj", "k_proj", "v_proj")]


def test_sets_are_the_best_of_all() -> None:
    def loss(chosen: tuple[int, ...]) -> float:
        return 0.0 if chosen in ((0, 4), (1, 3), (2, 5)) else 1.0

    assert best_sets(6, 2, loss) == [(0, 4), (1, 3), (2, 5)]
    many = best_sets(24, 2, lambda chosen: abs(chosen[1] - chosen[0] - 12))
    assert many == [(i, i + 12) for i in range(12)]


def test_pairs_are_found_by_trying() -> None:
    halves, neighbours = (made(kind) for kind in ("Llama", "Cohere"))
    assert pairs_of(halves, attentions(halves), texts()[0])[1].tolist() == [2, 3]
    assert pairs_of(neighbours, attentions(neighbours), texts()[0])[1].tolist() == [1, 3]


@pytest.mark.parametrize("groups", [0, 3, 4, 8, True, 1.0])
def test_numbers_of_groups_that_cannot_be(groups: Any) -> None:
    with pytest.raises(ConfigError, match="give one of 1, 2"):
        prunus.merge_key_values(made(), groups, texts(), progress=False)


def test_models_that_cannot_be_merged() -> None:
    with pytest.raises(ConfigError, match="no transformers model"):
        prunus.merge_key_values(nn.Linear(2, 2), 1, [torch.zeros(1, 2)], progress=False)
    with pytest.raises(ConfigError, match="between projections and heads"):
        prunus.merge_key_values(made("Qwen3"), 2, texts(), progress=False)
    with pytest.raises(ConfigError, match="it has no layers with"):
        prunus.merge_key_values(
            transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=32)).eval(),
            1, texts(), progress=False,
        )  # fmt: skip
    model = made()
    for layer in model.model.layers:
        layer.self_attn.k_proj.register_forward_hook(lambda m, args, out: out.tanh())
    with pytest.raises(SurgeryError, match="change what its attention makes"):
        prunus.merge_key_values(model, 2, texts(), progress=False)
