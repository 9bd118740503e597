"""transformers classes from tiny configurations with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TEXT = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 32,
}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 2, "use_cache": False}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
PYRAMID = {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}
SEQUENCES = {
    "vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32,
}  # fmt: skip
# class, config class, settings, kind of input
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT, "text"),
    "distilbert": (
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 32},
        "text",
    ),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", TEXT, "text"),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**TEXT, "embedding_size": 16}, "text"),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", {**TEXT, "embedding_size": 16}, "text"),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", TEXT, "text"),
    "deberta-v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", TEXT, "text"),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}, "text",
    ),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
         "max_position_embeddings": 32, "word_embed_proj_dim": 32, "use_cache": False},
        "text",
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, "text"),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED, "text"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED, "text"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 8}, "text"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**GROUPED, "num_key_value_heads": 1, "head_dim": 8}, "text"),
    "phi": ("PhiForCausalLM", "PhiConfig", {**TEXT, "use_cache": False}, "text"),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**TEXT, "use_cache": False}, "text"),
    "bloom": (
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}, "text",
    ),
    "falcon": (
        "FalconForCausalLM", "FalconConfig",
        {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "use_cache": False},
        "text",
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}, "text"),
    "t5-encoder": (
        "T5EncoderModel", "T5Config",
        {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, "text",
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION, "image"),
    "deit": ("DeiTForImageClassification", "DeiTConfig", VISION, "image"),
    "beit": ("BeitForImageClassification", "BeitConfig", VISION, "image"),
    "clip-vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", VISION, "image"),
    "swin": (
        "SwinForImageClassification", "SwinConfig",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 2},
        "image",
    ),
    "segformer": (
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {**PYRAMID, "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 32}, "image",
    ),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", PYRAMID, "image"),
    "resnet": (
        "ResNetForImageClassification", "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}, "image",
    ),
    "yolos": ("YolosForObjectDetection", "YolosConfig", {**VISION, "image_size": [32, 32], "num_detection_tokens": 5},
              "image"),
    "dpt": (
        "DPTForSemanticSegmentation", "DPTConfig",
        {**VISION, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 16, 16, 16],
         "fusion_hidden_size": 16, "is_hybrid": False},
        "image",
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", SEQUENCES, "text to text"),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0},
        "text to text",
    ),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig",
        {**{k: v for k, v in SEQUENCES.items() if k != "max_position_embeddings"}, "max_source_positions": 20,
         "max_target_positions": 32, "num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
         "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
        "spectrogram to text",
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC", "Wav2Vec2Config",
        {"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
         "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
         "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
        "sound",
    ),
    "clip": (
        "CLIPModel", "CLIPConfig", {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16},
        "text and image",
    ),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 8}, "text"),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**GROUPED, "head_dim": 8}, "text"),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**GROUPED, "pad_token_id": 0}, "text"),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GROUPED, "text"),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", GROUPED, "text"),
    "granite": ("GraniteForCausalLM", "GraniteConfig", GROUPED, "text"),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", GROUPED, "text"),
    "cohere": ("CohereForCausalLM", "CohereConfig", GROUPED, "text"),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {**GROUPED, "pad_token_id": 0}, "text"),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig",
        {**GROUPED, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32}, "text",
    ),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", {**GROUPED, "num_local_experts": 4, "head_dim": 8}, "text"),
    "mamba": (
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}, "text",
    ),
    "modernbert": (
        "ModernBertForSequenceClassification", "ModernBertConfig",
        {**TEXT, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}, "text",
    ),
    "dinov2": (
        "Dinov2ForImageClassification", "Dinov2Config",
        {k: v for k, v in VISION.items() if k != "intermediate_size"}, "image",
    ),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VISION, "image"),
    "mobilevit": (
        "MobileViTForImageClassification", "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 80]}, "image",
    ),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A class of the list, and keyword inputs as its documentation calls it."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind, config, settings, inputs = TRANSFORMERS[name]
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
    side = settings.get("image_size", 32 if inputs == "text and image" else 64)
    side = side[0] if isinstance(side, list) else side
    found: dict[str, Tensor] = {}
    if inputs.startswith("text"):
        found["input_ids"] = torch.randint(3, 50, (2, 9))
    if "image" in inputs:
        found["pixel_values"] = torch.randn(2, 3, side, side)
    if inputs == "sound":
        found["input_values"] = torch.randn(2, 400)
    if inputs.startswith("spectrogram"):
        found["input_features"] = torch.randn(2, 8, 40)
    if inputs.endswith("to text"):
        found["decoder_input_ids"] = torch.randint(3, 50, (2, 5))
    return model, found
