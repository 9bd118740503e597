"""A Llama-shaped model of a billion parameters with grouped queries, on the meta device: analysed and planned (bar D2).

    python benchmarks/large_model.py

No weight exists; what is measured is the analysis: wall-clock seconds, and the peak memory of the process beyond what
it had before. The bare `torch.export` call is timed in the same run.
"""

from __future__ import annotations

import resource
import time

import torch

import prunus
from options import Parser, needs
from prunus.graph.capture import capture
from prunus.pipeline.planning import prunable_groups
from record import write
from zoo_models import declare_torchvision_operators

LLAMA_1B = {
    "vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
TINY = LLAMA_1B | {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    args = Parser(__doc__).parse_args()
    needs("transformers")
    torch.set_num_threads(1)
    declare_torchvision_operators()
    import transformers
    from transformers import masking_utils

    # It asks the positions whether the text is several, and on the meta device there is no answer: it is one.
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(TINY if args.smoke else LLAMA_1B))).eval()
        inputs = {"input_ids": torch.ones(1, 16, dtype=torch.long)}
    capture(model, inputs)
    before, start = peak_mib(), time.perf_counter()
    capture(model, inputs)
    export = time.perf_counter() - start
    start = time.perf_counter()
    graph = prunus.trace(model, inputs)
    analysed = time.perf_counter() - start
    groups = prunable_groups(graph, model)
    plan = prunus.Plan.from_kept(graph, {g.name: list(range(0, g.units, 2)) for g in groups})
    planned = time.perf_counter() - start
    found = {
        "params": plan.before.params, "params_kept": plan.after.params, "export_seconds": export,
        "analysed_seconds": analysed, "planned_seconds": planned, "extra_mib": peak_mib() - before,
        "groups": len(groups), "heads": sum(g.heads_of is not None for g in groups),
    }  # fmt: skip
    for name, value in found.items():
        print(f"{name:18} {value:,.1f}" if isinstance(value, float) else f"{name:18} {value:,}")
    print("written to", write("large_model", found))


if __name__ == "__main__":
    main()
