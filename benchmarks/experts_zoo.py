"""Classes of transformers with experts: half of them cut, proven, saved, loaded by the class itself (bar J1).

    python benchmarks/experts_zoo.py [--only PATTERN ...]

Tiny configurations, random weights. Of every layer the experts with even numbers stay (of groups of experts the same
in each); the smaller network is compared with the masked one, its parameters with the plan's, the folder that it saves
is loaded by stock `AutoModelForCausalLM`, and both have to generate the same tokens. Rows go to
results/experts_zoo.jsonl at once; what is there is not run again. Status 1 if fewer than 97 % come home.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

import prunus
from options import SKIPPED, Parser
from prunus.errors import PruneError, first_line
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.surgery.configuration import keep_configuration_true_
from record import Log, results
from zoo_transformers import GROUPED

BAR = 0.97
EIGHT = {"num_experts": 8, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 0}
SHARED = {**ROUTED, "n_shared_experts": 1}
IN_GROUPS = {**SHARED, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8,
             "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}  # fmt: skip
NARROW = {**EIGHT, "moe_intermediate_size": 16}
CLASSES: dict[str, dict[str, Any]] = {
    "Mixtral": LOCAL,
    "Qwen2Moe": {**NARROW, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": {**NARROW, "head_dim": 8, "num_experts_per_tok": 8},
    "Qwen3Next": {**NARROW, "shared_expert_intermediate_size": 16, "head_dim": 8, "linear_num_value_heads": 2,
                  "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "Olmoe": EIGHT,
    "FlexOlmo": {**EIGHT, "pad_token_id": 0},
    "GptOss": {**LOCAL, "head_dim": 8},
    "DeepseekV2": {**IN_GROUPS, "topk_method": "group_limited_greedy"},
    "DeepseekV3": IN_GROUPS,
    "Glm4Moe": {**SHARED, "head_dim": 8},
    "Dots1": {**SHARED, "head_dim": 8},
    "Ernie4_5_Moe": {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 0,
                     "moe_layer_end_index": 1},
    "Phimoe": LOCAL,
    "MiniMax": {**LOCAL, "head_dim": 8},
    "MiniMaxM2": {**LOCAL, "head_dim": 8},
    "HunYuanMoEV1": {"num_experts": 8, "moe_topk": 2, "head_dim": 8},
    "Lfm2Moe": {**NARROW, "num_dense_layers": 0, "layer_types": ["full_attention", "conv"]},
    "GraniteMoe": LOCAL,
    "GraniteMoeShared": {**LOCAL, "shared_intermediate_size": 16},
    "JetMoe": {**LOCAL, "kv_channels": 8},
    "Cohere2Moe": {**EIGHT, "head_dim": 8},
    "ExaoneMoe": {**NARROW, "first_k_dense_replace": 0, "head_dim": 8},
    "Afmoe": {**NARROW, "num_dense_layers": 0, "head_dim": 8},
    "Llama4": {**LOCAL, "num_experts_per_tok": 1, "head_dim": 8, "intermediate_size_mlp": 24},
}  # fmt: skip
"""Name of the class without `ForCausalLM` -> settings beside those of the zoo's other language models."""


def made(name: str) -> nn.Module:
    """A class of the list, with weights that make its experts differ."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = getattr(transformers, f"{name}TextConfig" if name == "Llama4" else f"{name}Config")
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config(**{**GROUPED, **CLASSES[name]})).eval()
    for place, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dim() > 1 or "bias" in place:
            nn.init.normal_(tensor, std=0.3)
    return model


def came_home(name: str) -> dict[str, Any]:
    """What became of a class."""
    from transformers import AutoModelForCausalLM

    model, inputs = made(name), {"input_ids": torch.randint(3, 50, (4, 9))}
    graph = prunus.trace(model, inputs)
    free = [g for g in graph.experts if g.locked is None]
    if not free:
        why = "; ".join(str(g.locked) for g in graph.experts) or "no router that chooses by topk was found"
        return {"proven": False, "loaded": False, "equal": False, "why": why}
    plan = Plan.from_kept(graph, {g.name: list(range(0, g.units, 2)) for g in free})
    smaller, proof = apply_and_verify_(copy.deepcopy(model), plan, inputs)
    keep_configuration_true_(smaller, plan)
    left = sum(p.numel() for p in smaller.parameters())
    counted = left == plan.after.params
    asked = {"input_ids": inputs["input_ids"][:, :5], "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with tempfile.TemporaryDirectory() as folder:
        smaller.save_pretrained(folder)  # type: ignore[operator]
        again = AutoModelForCausalLM.from_pretrained(folder).eval()
        same = type(again) is type(smaller) and sum(p.numel() for p in again.parameters()) == left
        equal = torch.equal(smaller.generate(**asked), again.generate(**asked))  # type: ignore[operator]
    return {
        "proven": proof.passed and not proof.rewritten and counted, "loaded": same, "equal": equal,
        "error": proof.max_error, "layers": len(free), "params": left / plan.before.params,
        "why": "" if counted else f"{left} parameters are left, {plan.after.params} were predicted",
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a class."""
    lines = ["| class | layers with experts | parameters left | proven | error | stock loads | generates the same |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        left, error = (f"{row['params']:.1%}", f"{row['error']:.0e}") if row.get("params") else ("-", "-")
        said = ["yes" if row[k] else f"no: {row['why']}" for k in ("proven", "loaded", "equal")]
        lines.append(
            f"| {row['name']} | {row.get('layers', '-')} | {left} | {said[0]} | {error} | {said[1]} | {said[2]} |"
        )
    home = sum(all(row[k] for k in ("proven", "loaded", "equal")) for row in rows)
    return "\n".join([*lines, f"{home} of {len(rows)} classes come home"])


def main() -> None:
    parser = Parser(__doc__, only=["Mixtral"])
    parser.add_argument("--only", nargs="+", default=["*"], help="name patterns")
    args = parser.parse_args()
    if find_spec("transformers") is None:
        print("transformers is not installed")
        raise SystemExit(SKIPPED)
    torch.set_num_threads(1)
    log = Log(results() / "experts_zoo.jsonl")
    chosen = [n for n in CLASSES if any(fnmatchcase(n, p) for p in args.only)]
    for name in chosen:
        if log.has({"name": name}):
            continue
        try:
            row = came_home(name)
        except PruneError as refusal:
            row = {"proven": False, "loaded": False, "equal": False, "why": str(refusal)[:300]}
        except Exception as failure:  # a row, not a crash
            why = f"{type(failure).__name__}: {first_line(failure)}"
            row = {"proven": False, "loaded": False, "equal": False, "why": why}
        log.add({"name": name, **row})
    rows = [r for r in log.rows if r["name"] in chosen]
    print(table(rows))
    if sum(r["proven"] and r["loaded"] and r["equal"] for r in rows) < BAR * len(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
