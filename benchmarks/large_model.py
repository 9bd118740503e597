"""Large language models from their configuration alone: analysed, planned, and what each target would leave (D2, J6).

    python benchmarks/large_model.py [--shape llama-1b | llama-8b | moe-30b] [--resource macs | params]

No weight exists (`hf-config:`, device `meta`); what is measured is the analysis: wall-clock seconds, and the peak
memory of the process. The bare `torch.export` call is timed in the same run. Bar J6: at most five minutes and 4 GiB.
"""

from __future__ import annotations

import resource
import tempfile
import time
from typing import Any

import torch

import prunus
from options import Parser, needs, smoking
from prunus.graph.capture import capture
from prunus.models.sources import load_model
from prunus.pipeline.planning import prunable_groups
from prunus.plan.outlook import outlook
from record import write
from zoo_models import declare_torchvision_operators

LLAMA = {"num_attention_heads": 32, "num_key_value_heads": 8, "architectures": ["LlamaForCausalLM"]}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-1b": ("LlamaConfig", {
        **LLAMA, "vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    }),
    "llama-8b": ("LlamaConfig", {
        **LLAMA, "vocab_size": 128_256, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14_336,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    }),
    "moe-30b": ("Qwen3MoeConfig", {
        "vocab_size": 151_936, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "max_position_embeddings": 40_960, "architectures": ["Qwen3MoeForCausalLM"],
    }),
}  # fmt: skip
TINY = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-1b")
    parser.add_argument("--resource", choices=("macs", "params"), default="macs", help="what the targets bound")
    args = parser.parse_args()
    needs("transformers")
    torch.set_num_threads(1)
    declare_torchvision_operators()
    import transformers

    kind, settings = SHAPES[args.shape]
    config = getattr(transformers, kind)(**settings | (TINY if smoking() else {}), dtype="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        made = load_model(f"hf-config:{folder}")
    model, inputs = made.model, made.example_inputs
    before, start = peak_mib(), time.perf_counter()
    capture(model, inputs)
    export = time.perf_counter() - start
    start = time.perf_counter()
    graph = prunus.trace(model, inputs)
    analysed = time.perf_counter() - start
    groups = [*prunable_groups(graph, model), *(g for g in graph.experts if g.locked is None)]
    start = time.perf_counter()
    plan = prunus.Plan.from_kept(graph, {g.name: list(range(0, g.units, 2)) for g in groups})  # every second unit
    planned = time.perf_counter() - start
    start = time.perf_counter()
    prospects = outlook(graph, groups, resource=args.resource)
    looked = time.perf_counter() - start
    found = {
        "shape": args.shape, "params": plan.before.params, "params_kept": plan.after.params, "export_seconds": export,
        "analysed_seconds": analysed, "planned_seconds": planned, "targets_seconds": looked,
        "extra_mib": peak_mib() - before, "peak_mib": peak_mib(), "groups": len(groups),
        "heads": sum(g.heads_of is not None for g in groups), "blocks": len(graph.blocks.free),
        "experts": sum(g.units for g in graph.experts if g.locked is None),
        "macs": plan.before.macs,
        "targets": [
            {"target": p.target, "macs": p.cost and p.cost.macs, "params": p.cost and p.cost.params,
             "bytes": p.cost and 2 * p.cost.params, "refusal": p.refusal} for p in prospects],
    }  # fmt: skip
    for name, value in found.items():
        if name == "targets":
            for row in value:
                print(row)
        else:
            print(f"{name:18} {value:,.1f}" if isinstance(value, float) else f"{name:18} {value}")
    name = "large_model" + (f"_{args.shape}" if args.shape != "llama-1b" else "")
    print("written to", write(name, found))


if __name__ == "__main__":
    main()
