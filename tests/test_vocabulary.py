"""Vocabularies cut to what texts use: texts are cut alike, outputs for kept ids are the same, stock classes load it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.cli.app import main
from prunus.errors import ArtifactError, ConfigError, DataError, SurgeryError
from prunus.vocabulary.pieces import merge_path
from prunus.vocabulary.tokens import tokens_of

transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")
pre, trainers, models = tokenizers.pre_tokenizers, tokenizers.trainers, tokenizers.models

LEARNED = [
    "the plum and the cherry lose the twigs that they can spare, and keep the buds.",
    "Gardeners prune apple trees late in winter; whatever crosses another branch goes first.",
    "ein Pflaumenbaum verliert im Winter seine Zweige und behält die Knospen für das Frühjahr",
    "1234567890 (+) [-] {*} tokens, tokenizers & vocabularies: quick brown foxes jump over lazy dogs!",
] * 4
TEXTS = ["the plum can spare the buds.", "prune the twigs in winter", "", "the cherry, the plum ☃ zzz", "late apple"]


def byte_level() -> Any:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    kind = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    return trained(made, kind, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def bytes_of_unknown() -> Any:
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre.Metaspace()
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    kind = trainers.BpeTrainer(vocab_size=500, special_tokens=special[:3], show_progress=False)
    made.train_from_iterator(LEARNED, kind)
    data = json.loads(made.to_str())
    for token in special[3:]:
        data["model"]["vocab"][token] = len(data["model"]["vocab"])
    made = tokenizers.Tokenizer.from_str(json.dumps(data))
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def words_with_marks() -> Any:
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre.Whitespace()
    kind = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<pad>"], end_of_word_suffix="</w>", show_progress=False
    )
    return trained(made, kind, unk_token="<unk>", pad_token="<pad>")


def word_pieces() -> Any:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = tokenizers.normalizers.BertNormalizer(), pre.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kind = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(LEARNED, kind)
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return wrapped(made, **dict(zip(names, special, strict=True)))


def unigram() -> Any:
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre.Metaspace(), tokenizers.decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    kind = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(LEARNED, kind)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return wrapped(made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def words() -> Any:
    made = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre.Whitespace()
    return trained(made, trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False), unk_token="<unk>")


def trained(made: Any, trainer: Any, **special: str) -> Any:
    made.train_from_iterator(LEARNED, trainer)
    return wrapped(made, **special)


def wrapped(made: Any, **special: str) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


KINDS: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level, "byte_fallback": bytes_of_unknown, "suffixes": words_with_marks,
    "word_pieces": word_pieces, "unigram": unigram, "words": words,
}  # fmt: skip
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", {**SMALL, "tie_word_embeddings": False}),
    "GPT2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}),
    "Bert": ("BertForMaskedLM", SMALL),
    "T5": ("T5ForConditionalGeneration", {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
    "Bart": ("BartForConditionalGeneration", {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
    }),
}  # fmt: skip


def model_for(tokenizer: Any, name: str = "Llama", spare: int = 3) -> Any:
    """A random model with some rows that no token has."""
    kind, settings = MODELS[name]
    ids = {k: getattr(tokenizer, k) or 0 for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer) + spare, **ids, **settings)
    if name in ("T5", "Bart"):
        config.decoder_start_token_id = ids["pad_token_id"]
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():  # rows that are all alike would prove nothing
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_cut_into_the_same_tokens_and_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    model = model_for(tokenizer)
    trimmed = prunus.trim_vocabulary(model, tokenizer, TEXTS)
    kept, report = torch.tensor(trimmed.kept), trimmed.report
    assert report.exact
    assert report.rows == (len(tokenizer) + 3, len(kept))
    assert len(kept) < len(tokenizer)
    saved = trimmed.save(tmp_path / "small")
    again = transformers.AutoTokenizer.from_pretrained(saved)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(saved)
    for text in filter(None, TEXTS):
        old, new = tokenizer(text)["input_ids"], again(text)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(old) == again.convert_ids_to_tokens(new)
        assert [trimmed.kept[i] for i in new] == old
        assert again.decode(new) == tokenizer.decode(old)
        wanted = model(torch.tensor([old])).logits[..., kept]
        assert torch.allclose(loaded(torch.tensor([new])).logits, wanted, atol=1e-5)
    assert again.special_tokens_map == tokenizer.special_tokens_map


@pytest.mark.parametrize("name", MODELS)
def test_rows_heads_biases_and_ids_follow_and_ties_stay(name: str, tmp_path: Path) -> None:
    tokenizer = {"Bert": word_pieces, "T5": unigram}.get(name, byte_level)()
    model = model_for(tokenizer, name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    trimmed = prunus.trim_vocabulary(model, tokenizer, TEXTS)
    kept, small = torch.tensor(trimmed.kept), trimmed.model
    assert type(small) is type(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(small.get_input_embeddings().weight, model.get_input_embeddings().weight[kept])
    tied = [m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (model, small)]
    assert tied[0] == tied[1] == (name != "Llama")
    assert trimmed.report.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert small.config.vocab_size == len(kept) == small.get_output_embeddings().out_features
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        old = getattr(model.config, key, None)
        assert getattr(small.config, key, None) == (None if old is None else trimmed.kept.index(old))
    padding = small.get_input_embeddings().padding_idx
    assert padding in (None, small.config.pad_token_id)
    if name == "Bert":
        assert torch.equal(small.cls.predictions.bias, model.cls.predictions.bias[kept])
        assert small.cls.predictions.bias is small.cls.predictions.decoder.bias
    if name == "Bart":
        assert small.final_logits_bias.shape == (1, len(kept))
    again = type(small).from_pretrained(trimmed.save(tmp_path / "small"))
    ids = trimmed.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    if name != "Bert":
        settings = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(again.generate(ids, **settings), small.generate(ids, **settings))
    labels = {"labels": ids}
    assert torch.isfinite(again(ids, **labels).loss)


def test_what_is_generated_is_the_dense_models_where_it_chooses_among_what_stays() -> None:
    tokenizer = byte_level()
    model = model_for(tokenizer, spare=0)
    prompt = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    said = model.generate(prompt, max_new_tokens=12, do_sample=False)[0]
    trimmed = prunus.trim_vocabulary(model, tokenizer, TEXTS, keep=tokenizer.convert_ids_to_tokens(said.tolist()))
    assert trimmed.report.rows[1] < trimmed.report.rows[0]
    prompt = trimmed.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    found = trimmed.model.generate(prompt, max_new_tokens=12, do_sample=False)[0]
    assert [trimmed.kept[i] for i in found.tolist()] == said.tolist()


def test_other_texts_are_still_spelled() -> None:
    for kind in (byte_level, bytes_of_unknown):
        tokenizer = kind()
        trimmed = prunus.trim_vocabulary(model_for(tokenizer), tokenizer, TEXTS)
        strange = "Vögel sehen ☃☃ im Gras, 東京"
        ids = trimmed.tokenizer(strange)["input_ids"]
        assert trimmed.tokenizer.decode(ids, skip_special_tokens=True).strip() == strange
    tokenizer = word_pieces()
    trimmed = prunus.trim_vocabulary(model_for(tokenizer, "Bert"), tokenizer, TEXTS)
    assert trimmed.tokenizer.unk_token not in trimmed.tokenizer.tokenize("sprite")


def test_a_word_that_was_unknown_stays_unknown() -> None:
    pieces = ["[UNK]", "a", "x", "ab", "##b☃", "never"]
    made = tokenizers.Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre.WhitespaceSplit()
    tokenizer = wrapped(made, unk_token="[UNK]")
    texts = ["ab☃", "a", "xb☃"]
    # After ab nothing starts with ☃. Without ab, that no text has as a token, it would be a, ##b☃.
    assert [tokenizer.tokenize(t) for t in texts] == [["[UNK]"], ["a"], ["x", "##b☃"]]
    trimmed = prunus.trim_vocabulary(model_for(tokenizer), tokenizer, texts)
    assert trimmed.tokenizer.tokenize("ab☃") == ["[UNK]"]
    assert set(trimmed.tokenizer.get_vocab()) == set(pieces) - {"never"}


def test_the_price_of_the_unknown_stays() -> None:
    vocabulary = [("<unk>", 0.0), ("a", -1.0), ("ab", -2.0), ("abc", -9.0), ("never", -50.0), ("rare", -40.0)]
    made = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer = wrapped(made, unk_token="<unk>")
    trimmed = prunus.trim_vocabulary(model_for(tokenizer), tokenizer, ["ab", "abc", "a"])
    assert set(trimmed.tokenizer.get_vocab()) == {"<unk>", "a", "ab", "abc", "never"}


def test_merges_lead_to_what_stays_alone() -> None:
    tokenizer = byte_level()
    trimmed = prunus.trim_vocabulary(model_for(tokenizer), tokenizer, ["plum"])
    before, after = tokens_of(tokenizer), tokens_of(trimmed.tokenizer)
    ranks = {tuple(pair): i for i, pair in enumerate(before.data["model"]["merges"])}
    path = merge_path(before.data["model"], ranks, tokenizer.tokenize("plum")[-1])
    assert set(path) <= after.of_model
    assert trimmed.report.merges[1] == len(after.of_model) - 256 - 3
    assert merge_path(before.data["model"], ranks, "no such token") == []


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "word_pieces"])
def test_rarer_tokens_go_when_asked_and_the_report_says_what_that_costs(kind: str) -> None:
    tokenizer = KINDS[kind]()
    model = model_for(tokenizer)
    whole = prunus.trim_vocabulary(model, tokenizer, TEXTS)
    fewer = prunus.trim_vocabulary(model, tokenizer, TEXTS, min_count=2)
    assert fewer.report.rows[1] < whole.report.rows[1]
    assert not fewer.report.exact
    assert 0 < fewer.report.coverage < whole.report.coverage == 1
    old, new = ([t(x)["input_ids"] for x in TEXTS] for t in (tokenizer, fewer.tokenizer))
    assert fewer.report.tokens == (sum(map(len, old)), sum(map(len, new)))
    changed = [[fewer.kept[i] for i in b] != a for a, b in zip(old, new, strict=True)]
    assert fewer.report.changed == sum(changed)
    size = (whole.report.rows[1] + fewer.report.rows[1]) // 2
    between = prunus.trim_vocabulary(model, tokenizer, TEXTS, size=size)
    assert fewer.report.rows[1] - 1 <= between.report.rows[1] <= size
    kept = prunus.trim_vocabulary(model, tokenizer, TEXTS, min_count=2, keep=TEXTS)
    assert kept.report.exact
    with pytest.raises(ConfigError, match="stay in any case"):
        prunus.trim_vocabulary(model, tokenizer, TEXTS, size=2)


def test_it_is_refused_by_name_before_the_work(tmp_path: Path) -> None:
    tokenizer = byte_level()
    model = model_for(tokenizer)
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        prunus.trim_vocabulary(model, lambda text: text, TEXTS)
    with pytest.raises(ConfigError, match="no transformers model"):
        prunus.trim_vocabulary(torch.nn.Linear(2, 2), tokenizer, TEXTS)
    vision = {"image_size": 8, "patch_size": 4, **{k: v for k, v in SMALL.items() if "position" not in k}}
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**vision))
    with pytest.raises(ConfigError, match="no embedding of tokens"):
        prunus.trim_vocabulary(vit, tokenizer, TEXTS)
    with pytest.raises(DataError, match="no token"):
        prunus.trim_vocabulary(model, tokenizer, [""])
    with pytest.raises(DataError, match="is no text"):
        prunus.trim_vocabulary(model, tokenizer, [1])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="min_count"):
        prunus.trim_vocabulary(model, tokenizer, TEXTS, min_count=0)
    tokenizer.add_tokens([f"<extra {i}>" for i in range(9)])
    with pytest.raises(ConfigError, match="resize_token_embeddings"):
        prunus.trim_vocabulary(model, tokenizer, TEXTS)
    second = model_for(byte_level())
    second.config.audio_vocab_size = 7
    with pytest.raises(ConfigError, match="second vocabulary"):
        prunus.trim_vocabulary(second, byte_level(), TEXTS)
    data = json.loads(words_with_marks().backend_tokenizer.to_str())
    data["model"]["dropout"] = 0.1
    odd = wrapped(tokenizers.Tokenizer.from_str(json.dumps(data)), unk_token="<unk>")
    with pytest.raises(ConfigError, match="at random"):
        prunus.trim_vocabulary(model, odd, TEXTS)
    (tmp_path / "file").write_text("kept")
    tokenizer = byte_level()
    with pytest.raises(ArtifactError, match="not empty"):
        prunus.trim_vocabulary(model_for(tokenizer), tokenizer, TEXTS).save(tmp_path)


class Elsewhere(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Reads the number of a token beside its row."""

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        found = super().forward(input_ids, **kwargs)
        found.logits = found.logits + (input_ids % 7)[..., None]
        return found


def test_a_vocabulary_that_is_read_elsewhere_is_not_cut() -> None:
    tokenizer = byte_level()
    model = model_for(tokenizer)
    model.__class__ = Elsewhere
    with pytest.raises(SurgeryError, match="something else"):
        prunus.trim_vocabulary(model, tokenizer, TEXTS)


def test_ids_in_what_generate_is_set_to_are_renumbered() -> None:
    tokenizer = byte_level()
    model = model_for(tokenizer)
    last = len(tokenizer) - 1
    model.generation_config.suppress_tokens = [0, last]
    model.generation_config.bad_words_ids = [[5, 6], [last]]
    model.generation_config.eos_token_id = [1, 4]
    trimmed = prunus.trim_vocabulary(model, tokenizer, TEXTS)
    settings, place = trimmed.model.generation_config, trimmed.kept.index
    assert last not in trimmed.kept
    assert settings.suppress_tokens == [place(0)]
    assert settings.bad_words_ids == [[place(5), place(6)]]
    assert settings.eos_token_id == [place(1), place(4)]
    assert model.generation_config.suppress_tokens == [0, last]


def test_it_can_be_pruned_and_trained_on(tmp_path: Path) -> None:
    tokenizer = byte_level()
    trimmed = prunus.trim_vocabulary(model_for(tokenizer), tokenizer, TEXTS)
    result = prunus.prune(trimmed.model, {"input_ids": trimmed.examples[0]}, method="l1", target=0.5)
    prunus.save(tmp_path / "artifact", result.model, result.plan)
    again = prunus.load(tmp_path / "artifact")
    ids = trimmed.examples[0]
    assert torch.allclose(again(input_ids=ids).logits, result.model(ids).logits, atol=1e-5)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_level()
    folder, out, text = tmp_path / "dense", tmp_path / "small", tmp_path / "plums.txt"
    model_for(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text.write_text("\n".join(TEXTS))
    with pytest.raises(SystemExit, match="0"):
        main(["trim", f"hf:{folder}", "--data", f"text:{text}", "--keep", "lazy dogs", "--out", str(out), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["exact"] is True
    again = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert len(again) == model.config.vocab_size == told["rows"][1] == len(json.loads(_kept(out))["kept"])
    for line in [*TEXTS, "lazy dogs"]:
        assert again.tokenize(line) == tokenizer.tokenize(line)
    for wrong in (["mine.py:net", f"text:{text}"], [f"hf:{folder}", "digits"], [f"hf:{folder}", "text:nowhere"]):
        with pytest.raises(SystemExit, match="2"):
            main(["trim", wrong[0], "--data", wrong[1], "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit, match="2"):  # before the model is looked for
        main(["trim", "hf:nowhere", "--data", f"text:{text}", "--out", str(out)])
    assert "not empty" in capsys.readouterr().err
    rarer = ["--min-count", "2", "--out", str(tmp_path / "rarer"), "--json"]
    with pytest.raises(SystemExit, match="0"):
        main(["trim", f"hf:{folder}", "--data", f"text:{text}", *rarer])
    once = prunus.trim_vocabulary(model_for(tokenizer), tokenizer, ["\n".join(TEXTS)], min_count=2)
    assert json.loads(capsys.readouterr().out)["rows"] == list(once.report.rows)


def _kept(folder: Path) -> str:
    return (folder / "kept_tokens.json").read_text()
