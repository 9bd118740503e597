"""Bar G5: wrong cuts of 30 networks of the tests' zoo, in fp32, bf16 and fp16; how many does the proof find?

    python benchmarks/proof_power.py            30 networks, 10 wrong cuts each in each format
    python benchmarks/proof_power.py --smoke    4 networks, 3 wrong cuts each

A wrong cut takes another column, rows next to the right ones, a wrong head, another unit's bias, or loses a bias; it
counts only if some channel of some output is then off by 0.1 % or more, in fp64. The right cut must pass each time, and
so must it of the same network where only the places of the largest outputs are returned; what is called proven must
say what was compared. The exit status is 1 if less than 99 % are found or a right cut is refused.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import prunus
from options import Parser
from prunus.errors import SurgeryError
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.proof.comparison import named_tensors
from wrongcuts import KINDS, Wrong, attempt, half_of_all, is_wrong
from zoo import ZOO

NETWORKS = (
    "plain_cnn", "conv_bias_no_norm", "mlp", "mlp_on_sequences", "flatten_to_linear", "residual_option_b",
    "preact_wide_resnet", "dense_concat", "mobilenet_v2", "resnext", "squeeze_excite_conv", "squeeze_excite_linear",
    "norms_without_parameters", "norm_after_flatten", "instance_norm", "layer_norm_channels", "conv_transpose_unet",
    "glu", "pixel_shuffle", "prelu", "conv1d", "feature_pyramid", "siamese", "two_inputs", "two_outputs",
    "heads", "heads_fused", "heads_shared_layers", "heads_gated", "heads_bias_table",
)  # fmt: skip
FORMATS = (torch.float32, torch.bfloat16, torch.float16)
WANTED = 0.99


class Places(nn.Module):
    """Returns where the outputs of a network are largest, and nothing else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return [t.argmax(-1) for t in named_tensors(self.net(*args, **kwargs)).values()]


def in_format(value: Any, dtype: torch.dtype) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, value)


def wrong_cuts(model: nn.Module, graph: Any, plan: Plan, inputs: Any, wanted: int, seed: int) -> list[Wrong]:
    """So many wrong cuts of all kinds in turn, each really wrong."""
    rng = np.random.default_rng(seed)
    found: list[Wrong] = []
    for attempt_number in range(8 * wanted):
        wrong = KINDS[attempt_number % len(KINDS)](graph, plan, rng)
        if wrong is not None and wrong not in found and is_wrong(model, graph, plan, wrong, inputs):
            found.append(wrong)
        if len(found) == wanted:
            break
    return found


def measure(names: tuple[str, ...], wanted: int) -> tuple[Counter[tuple[str, str, bool]], list[str]]:
    """(kind, format, found) -> number of wrong cuts; and everything that should not be."""
    counts: Counter[tuple[str, str, bool]] = Counter()
    odd: list[str] = []
    for name in names:
        animal = ZOO[name]
        model, inputs = animal.make(), animal.inputs(2)
        graph = prunus.trace(model, inputs)
        plan = Plan.from_kept(graph, half_of_all(graph))
        wrongs = wrong_cuts(model, graph, plan, inputs, wanted, seed=len(name))
        for dtype in FORMATS:
            word = str(dtype).removeprefix("torch.")
            cast, given = copy.deepcopy(model).to(dtype), in_format(inputs, dtype)
            try:
                proof = apply_and_verify_(copy.deepcopy(cast), plan, given, rewrite_graph=False)[1]
                if not (proof.passed and proof.errors):
                    odd.append(f"{name} in {word}: called proven, but nothing was compared")
            except SurgeryError as refusal:
                odd.append(f"{name} in {word}: the right cut is refused: {refusal.what}")
                continue
            for wrong in wrongs:
                said = attempt(cast, wrong, given)
                counts[wrong.kind, word, said is None] += 1
                if said is not None:
                    odd.append(f"{name} in {word}: {wrong.kind} passes ({said.max_error:.1e} <= {said.tolerance:.0e})")
        places = Places(model).eval()
        graph = prunus.trace(places, inputs)
        plan = Plan.from_kept(graph, half_of_all(graph))
        proof = apply_and_verify_(places, plan, inputs, rewrite_graph=False)[1]
        if not (proof.passed and proof.errors):
            odd.append(f"places of {name}: called proven, but no number was compared")
    return counts, odd


def main() -> int:
    """Print the table; 1 if the bar is missed."""
    parser = Parser(__doc__, networks=NETWORKS[::8], cuts=3)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--cuts", type=int, default=10, help="wrong ones of each network in each format")
    asked = parser.parse_args()
    names = tuple(asked.networks)
    counts, odd = measure(names, asked.cuts)
    kinds = sorted({kind for kind, _, _ in counts})
    formats = [str(d).removeprefix("torch.") for d in FORMATS]
    print(f"{len(names)} networks; found of wrong cuts:")
    print(f"{'':<24}" + "".join(f"{word:>14}" for word in formats))
    for kind in kinds:
        cells = [f"{counts[kind, w, True]} of {counts[kind, w, True] + counts[kind, w, False]}" for w in formats]
        print(f"{kind:<24}" + "".join(f"{cell:>14}" for cell in cells))
    found = sum(n for (_, _, seen), n in counts.items() if seen)
    share = found / max(counts.total(), 1)
    print(f"all: {found} of {counts.total()} = {100 * share:.2f} % ({100 * WANTED:.0f} % wanted)")
    for line in odd:
        print(line)
    missed = share < WANTED or not counts or any("refused" in line or "compared" in line for line in odd)
    print("G5 " + ("MISSED" if missed else "met"))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
