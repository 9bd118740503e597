"""Vocabularies trimmed to English texts (bars J1 and J5): tokenizers of every kind, in models of many classes.

    PRUNUS_SHARED=DIR python benchmarks/vocabulary.py [--only PATTERN ...] [--size 16000] [--tokens 20000]

Tokenizers are trained on WikiText-2 and the sources of Python's standard library, models are small and random. Each is
trimmed to tiny-shakespeare and the SST-2 sentences, saved, and loaded by stock `from_pretrained`. Then every line and
every whole file is cut again by what was loaded, and logits of kept ids are compared on the first `--tokens` tokens
(on all of them where the class is in `THROUGHOUT`), absolutely. `generate` is compared before saving and after.
PRUNUS_SHARED holds `text/`. Rows go to results/vocabulary.jsonl at once; what is there is not run again. Status 1 if a
text is cut otherwise, a logit differs by more than 1e-5, or something is not loaded.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

import prunus
from options import Parser, needs, smoking
from prunus.errors import PruneError
from record import Log, results

BAR = 1e-5
THROUGHOUT = ("LlamaForCausalLM", "BertForMaskedLM")
WIDE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 512,
}  # fmt: skip
GROUPED = {**WIDE, "num_key_value_heads": 2}
SEQUENCES = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 512,
}  # fmt: skip


def shared(*parts: str) -> str:
    return Path(os.environ["PRUNUS_SHARED"], "text", *parts).read_text(encoding="utf-8")


@functools.cache
def learned_from() -> list[str]:
    """Lines that the tokenizers are trained on."""
    if smoking():
        return [line for p in sorted(Path(__file__).parents[1].glob("docs/*.md")) for line in p.read_text().split("\n")]
    code = [p.read_text(encoding="utf-8") for p in sorted(Path(os.__file__).parent.glob("*.py"))]
    return [line for text in (shared("wikitext-2", "valid.txt"), *code) for line in text.split("\n")]


@functools.cache
def files() -> tuple[str, ...]:
    """The English texts."""
    if smoking():
        return ((Path(__file__).parents[1] / "README.md").read_text(),)
    sentences = [shared("sst2-sentences", f"stsa.binary.{part}") for part in ("train", "dev", "test")]
    plain = ["\n".join(line[2:] for line in text.split("\n")) for text in sentences]
    return (shared("tiny-shakespeare", "input.txt"), *plain)


def trained(model: Any, trainer: str, pre_tokenizer: Any, size: int, special: Sequence[str], **settings: Any) -> Any:
    """The vocabulary of a tokenizer trained on `learned_from`, and its merges if it has some."""
    import tokenizers

    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizer
    kind = getattr(tokenizers.trainers, trainer)
    made.train_from_iterator(
        learned_from(), kind(vocab_size=size, special_tokens=list(special), show_progress=False, **settings)
    )
    data = json.loads(made.to_str())["model"]
    return data["vocab"], [tuple(m) for m in data.get("merges", ())]


@functools.cache
def of_bytes(size: int, special: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level byte-pair encoding."""
    from tokenizers import models, pre_tokenizers

    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained(models.BPE(), "BpeTrainer", cut, size, special, initial_alphabet=cut.alphabet())


@functools.cache
def with_fallback(size: int, special: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair encoding of characters, with bytes for those that are unknown."""
    from tokenizers import models, pre_tokenizers

    every = (*special, *(f"<0x{byte:02X}>" for byte in range(256)))
    return trained(models.BPE(), "BpeTrainer", pre_tokenizers.Metaspace(), size, every, limit_alphabet=200)


@functools.cache
def with_suffixes(size: int, special: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level byte-pair encoding whose words have an end."""
    from tokenizers import models, pre_tokenizers

    cut = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    model, alphabet = models.BPE(end_of_word_suffix="</w>"), pre_tokenizers.ByteLevel.alphabet()
    more = {"initial_alphabet": alphabet, "end_of_word_suffix": "</w>"}
    return trained(model, "BpeTrainer", cut, size, special, **more)


@functools.cache
def of_pieces(size: int, special: tuple[str, ...]) -> dict[str, int]:
    """WordPiece."""
    from tokenizers import models, pre_tokenizers

    model = models.WordPiece(unk_token="[UNK]")
    vocabulary, _ = trained(model, "WordPieceTrainer", pre_tokenizers.BertPreTokenizer(), size, special)
    return vocabulary


@functools.cache
def of_paths(size: int, special: tuple[str, ...]) -> list[tuple[str, float]]:
    """A unigram model."""
    from tokenizers import models, pre_tokenizers

    cut = pre_tokenizers.Metaspace()
    vocabulary, _ = trained(models.Unigram(), "UnigramTrainer", cut, size, special, unk_token="<unk>")
    return [(token, score) for token, score in vocabulary]


def plain(size: int, *, normalize: bool = True) -> Any:
    """A tokenizer without a class of its own, with added tokens behind."""
    import tokenizers
    import transformers

    vocabulary, merges = of_bytes(size, ("<|endoftext|>",))
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.normalizer = tokenizers.normalizers.NFC() if normalize else None
    made.decoder = tokenizers.decoders.ByteLevel()
    end = "<|endoftext|>"
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end, pad_token=end)
    found.add_special_tokens({"extra_special_tokens": ["<|system|>", "<|user|>"]})
    return found


def classed(name: str, kind: Callable[..., Any], special: tuple[str, ...], **settings: Any) -> Callable[[int], Any]:
    """A maker of a tokenizer of a class of its own."""

    def make(size: int) -> Any:
        import transformers

        found = kind(size, special)
        given = {"vocab": found[0], "merges": found[1]} if isinstance(found, tuple) else {"vocab": found}
        return getattr(transformers, name)(**given, **settings)

    return make


CODED = ("<s>", "<pad>", "</s>", "<unk>")
BERTS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LLAMAS = ("<unk>", "<s>", "</s>")
GPT2, ROBERTA = classed("GPT2Tokenizer", of_bytes, ("<|endoftext|>",)), classed("RobertaTokenizer", of_bytes, CODED)
BERT = classed("BertTokenizer", of_pieces, BERTS)
LLAMA = classed("LlamaTokenizer", with_fallback, LLAMAS)
ZOO: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
    "LlamaForCausalLM": (LLAMA, GROUPED),
    "MistralForCausalLM": (LLAMA, GROUPED),
    "MixtralForCausalLM": (LLAMA, {**GROUPED, "num_local_experts": 4}),
    "GemmaForCausalLM": (
        classed("GemmaTokenizer", with_fallback, ("<pad>", "<eos>", "<bos>", "<unk>")), {**GROUPED, "head_dim": 16}),
    "Qwen2ForCausalLM": (classed("Qwen2Tokenizer", of_bytes, ("<|endoftext|>",)), GROUPED),
    "Qwen3ForCausalLM": (plain, {**GROUPED, "head_dim": 16}),
    "GPT2LMHeadModel": (GPT2, {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "GPTNeoXForCausalLM": (plain, WIDE),
    "OPTForCausalLM": (GPT2, {**WIDE, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "BloomForCausalLM": (plain, {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "FalconForCausalLM": (plain, WIDE),
    "PhiForCausalLM": (plain, WIDE),
    "BertForMaskedLM": (BERT, WIDE),
    "BertForSequenceClassification": (BERT, WIDE),
    "DistilBertForMaskedLM": (
        classed("DistilBertTokenizer", of_pieces, BERTS), {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}),
    "ElectraForMaskedLM": (classed("ElectraTokenizer", of_pieces, BERTS), {**WIDE, "embedding_size": 32}),
    "MPNetForMaskedLM": (
        classed("MPNetTokenizer", of_pieces, ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), unk_token="[UNK]"), WIDE),
    "RobertaForMaskedLM": (ROBERTA, WIDE),
    "XLMRobertaForMaskedLM": (classed("XLMRobertaTokenizer", of_paths, CODED), WIDE),
    "AlbertForMaskedLM": (
        classed("AlbertTokenizer", of_paths, ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
        {**WIDE, "embedding_size": 32}),
    "DebertaV2ForMaskedLM": (
        classed("DebertaV2Tokenizer", of_paths, ("[PAD]", "[CLS]", "[SEP]", "<unk>", "[MASK]"), unk_token="<unk>"),
        {**WIDE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "T5ForConditionalGeneration": (
        classed("T5Tokenizer", of_paths, ("<pad>", "</s>", "<unk>")),
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}),
    "BartForConditionalGeneration": (ROBERTA, SEQUENCES),
    "MBartForConditionalGeneration": (classed("MBartTokenizer", of_paths, CODED), SEQUENCES),
    "CLIPTextModelWithProjection": (
        classed("CLIPTokenizer", with_suffixes, ("<|startoftext|>", "<|endoftext|>")), WIDE),
}  # fmt: skip
"""Class of a model -> how its tokenizer is made, and the settings of its configuration."""


def model_for(name: str, tokenizer: Any, settings: dict[str, Any]) -> Any:
    """A random model of a class, with some rows that no token has."""
    import transformers

    kind = getattr(transformers, name)
    asked = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    ids = {key: getattr(tokenizer, key, None) for key in asked}
    ids = {key: number for key, number in ids.items() if number is not None}
    torch.manual_seed(0)
    config = kind.config_class(vocab_size=len(tokenizer) + 7, **settings, **ids)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = ids["pad_token_id"]
        config.forced_eos_token_id = None  # Bart's default is an id of another vocabulary
    model = kind(config).eval()
    for parameter in model.parameters():  # rows that are all alike would prove nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def inputs_of(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}


@torch.inference_mode()
def furthest(dense: Any, smaller: Any, kept: Sequence[int], ids: Sequence[int], length: int = 128) -> float:
    """The largest absolute difference of the first output, of kept ids where it is one of tokens."""
    worst, stays = 0.0, torch.tensor(kept)
    place = {old: new for new, old in enumerate(kept)}
    rows = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)] or [ids]
    for start in range(0, len(rows), 8):
        old = torch.tensor(rows[start : start + 8])
        new = torch.tensor([[place[i] for i in row] for row in old.tolist()])
        one, other = dense(**inputs_of(dense, old))[0], smaller(**inputs_of(smaller, new))[0]
        one = one if one.shape == other.shape else one[..., stays]
        worst = max(worst, float((one - other).abs().max()))
    return worst


def row_of(name: str, size: int, tokens: int) -> dict[str, Any]:
    """Trim one model, save, load, and compare everything."""
    import transformers

    make, settings = ZOO[name]
    tokenizer = make(size)
    model = model_for(name, tokenizer, settings)
    texts = [part for text in files() for part in (text, *text.splitlines())]
    start = time.perf_counter()
    trimmed = prunus.trim_vocabulary(model, tokenizer, texts)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as place:
        folder = trimmed.save(Path(place) / "small")
        loaded, again = type(model).from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    old, new = (t.backend_tokenizer.encode_batch_fast(texts) for t in (tokenizer, again))
    same = sum([trimmed.kept[i] for i in b.ids] == a.ids for a, b in zip(old, new, strict=True))
    ids = [i for text, row in zip(texts, old, strict=True) if text in files() for i in row.ids]
    ids = ids if name in THROUGHOUT else ids[:tokens]
    report = trimmed.report
    return {
        "name": name, "tokenizer": type(tokenizer).__name__, "kind": type(tokenizer.backend_tokenizer.model).__name__,
        "rows": report.rows, "parameters": report.parameters, "merges": report.merges, "texts": len(texts),
        "texts_same": same, "tokens": sum(len(row.ids) for row in old), "tokens_compared": len(ids),
        "max_error": furthest(model, loaded, trimmed.kept, ids), "loaded_class": type(again).__name__,
        "tied": bool(getattr(loaded.config, "tie_word_embeddings", False)), "generate": generated(trimmed, loaded),
        "trim_seconds": seconds,
    }  # fmt: skip


def generated(trimmed: Any, loaded: Any) -> bool | None:
    """Whether the same comes out before saving and after; None where the class generates nothing."""
    if not loaded.can_generate():
        return None
    ids = trimmed.examples[0][:, :8]
    settings = {"max_new_tokens": 8, "do_sample": False}
    return bool(torch.equal(trimmed.model.generate(ids, **settings), loaded.generate(ids, **settings)))


def holds(row: dict[str, Any]) -> bool:
    same = row.get("texts") == row.get("texts_same")
    return "why" not in row and same and row["max_error"] <= BAR and row["generate"] is not False


def main() -> None:
    parser = Parser(__doc__, only=["Llama*", "BertForMasked*", "T5*"], size=600, tokens=500)
    parser.add_argument("--only", nargs="+", default=["*"], help="name patterns of classes")
    parser.add_argument("--size", type=int, default=16_000, help="tokens of the trained tokenizers")
    parser.add_argument("--tokens", type=int, default=20_000, help="of which logits are compared")
    args = parser.parse_args()
    needs("transformers", "tokenizers")
    torch.set_num_threads(1)
    log = Log(results() / "vocabulary.jsonl")
    chosen = [n for n in ZOO if any(fnmatchcase(n, p) for p in args.only)]
    for name in chosen:
        if log.has({"name": name}):
            continue
        try:
            log.add(row_of(name, args.size, args.tokens))
        except PruneError as refusal:
            log.add({"name": name, "why": str(refusal)[:500]})
    rows = [r for r in log.rows if r["name"] in chosen]
    good = [r for r in rows if holds(r)]
    print(f"{len(good)} of {len(rows)} vocabularies: every text cut alike, logits to {BAR}, loaded by stock classes")
    for row in rows:
        if row not in good:
            print(f"  {row['name']}: {row.get('why', row)}")
    raise SystemExit(int(len(good) < len(rows)))


if __name__ == "__main__":
    main()
