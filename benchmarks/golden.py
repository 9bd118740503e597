"""What the library does, to the bit, on small seeded runs: recorded before a reorganisation, compared after it.

    python benchmarks/golden.py --write before.json      # about fifty runs; a minute on one thread
    python benchmarks/golden.py --compare before.json    # again; status 1 if anything differs; --only "masks/*" limits
    python benchmarks/golden.py --smoke                  # four runs, to see that the script works

Recorded are plan, scores, posteriors, every tensor of the result, outputs, proof, losses, masks and artifacts: tensors
as digests (16 digits of SHA-256), floats as their shortest exact text, nothing about times and places of code. A run
that fails is recorded with its error. `--compare` prints `same`, or the first places that differ as `path: old -> new`;
it warns if the machine or a version is another, where bits can't be compared. Networks and data are random, nothing is
downloaded. What the package may move lies in `api` alone: name its new place there.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from fnmatch import fnmatch
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import prunus
from options import Parser

SEED, EXAMPLES, BATCH, SHOWN, IMAGE, B = 3, 192, 32, 12, (3, 8, 8), nn.BatchNorm2d
A, DPP, C, L = prunus.Allocation, prunus.DynamicProbabilisticPruning, partial(nn.Conv2d, kernel_size=3), nn.Linear
Record = dict[str, Any]


def api() -> SimpleNamespace:
    """Everything that is not in `prunus.__all__`; the only place to touch when something moves."""

    def found(name: str, module: str) -> Any:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            return getattr(prunus, name)

    def masked(model: nn.Module, x: Tensor, layers: list[str], method: Any, data: Any, loss_fn: Any) -> Any:
        """Masks inside weights; of the answer are read what `MASKED` names, and `layouts`."""
        target = dict.fromkeys(layers, method.pattern)
        done = prunus.prune(
            model, x, method=method, target=target, data=data, loss_fn=loss_fn, seed=SEED, progress=False
        )
        if not done.verification.passed:
            raise AssertionError("not proven")
        proof = None if done.plan.patterns else done.verification  # that of masks is new
        return SimpleNamespace(**by_field(done.masked), model=done.model, proof=proof)

    def pruned(model: nn.Module, x: Tensor, *, checkpoint: Any = None, **options: Any) -> Any:
        """`prune` with its options as the names of the runs call them."""
        resume = options.pop("resume", False)
        if checkpoint is not None:
            options["checkpoint"] = prunus.Checkpoint(checkpoint, resume)
        return prunus.prune(model, x, **spelled(options))

    def compressed(model: nn.Module, data: Any, *, batch_size: int, **options: Any) -> Any:
        """`compress` with its options as the names of the runs call them."""
        run = prunus.RunSettings(batch_size=batch_size, modes=("eager",))
        return prunus.compress(model, data, run=run, **spelled(options))

    def sparsified(model: nn.Module, data: Any, **options: Any) -> Any:
        """The same with masks inside weights; of the answer is read `model`."""
        return SimpleNamespace(model=compressed(model, data, **options).model)

    return SimpleNamespace(
        prune=pruned,
        masked=masked,
        compress=compressed,
        sparsify=sparsified,
        resolve=found("resolve", "prunus.methods.registry"),
        METHODS=found("METHODS", "prunus.methods.registry"),
        ArrayDataset=found("ArrayDataset", "prunus.data"),
        DataSource=found("DataSource", "prunus.data"),
        FinetuneConfig=found("FinetuneConfig", "prunus.recovery"),
        finetune=found("finetune", "prunus.recovery"),
        lenet5=found("lenet5", "prunus.pipeline.demo"),
    )


def spelled(options: Mapping[str, Any]) -> Record:
    """Options as the names of the runs call them -> as the library does."""
    found: Record = {"repair": False}  # the record is older
    for name, value in options.items():
        if name in ("budget", "pruning_ratio", "kept_counts"):
            found["target"] = value
        elif value is True:
            found["allow"] = (*found.get("allow", ()), name)
        else:
            found[name] = value
    return found


API = api()
SUMMARY = ("asked", "accuracy", "loss", "kept", "layers", "undecided", "proof", "loss_of_draws", "loss_of_fixed")
MASKED = ("model", "masks", "logits", "inclusion", "inputs", "history", "sampled_loss", "fixed_loss", "proof")


class Net(nn.Module):
    def __init__(self, way: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in {"way": way, **parts}.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def residual(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.bn(m.stem(x)))
    x = F.relu(x + m.a(x))
    return m.head(F.relu(m.b(x) + m.short(x)).mean((2, 3)))


def attention(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.norm(x)
    q, k, v = (f(y).view(*y.shape[:2], m.num_heads, -1).transpose(1, 2) for f in (m.q, m.k, m.v))
    x = x + m.out(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))
    return m.head((x + m.down(F.gelu(m.up(m.last(x))))).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet5": (lambda: API.lenet5(SEED)[0], (1, 28, 28)),
    "residual": (
        lambda: Net(residual, stem=C(3, 12, padding=1, bias=False), bn=B(12), short=nn.Conv2d(12, 24, 1, 2),
                    a=nn.Sequential(C(12, 16, padding=1), B(16), nn.ReLU(), nn.Conv2d(16, 12, 1)), head=L(24, 4),
                    b=nn.Sequential(C(12, 24, padding=1, stride=2), B(24), nn.ReLU(), nn.Conv2d(24, 24, 1))),
        IMAGE),
    "perceptron": (
        lambda: nn.Sequential(prunus.SelectInputs(20), L(20, 32), nn.ReLU(), L(32, 24), nn.ReLU(), L(24, 4)), (20,)),
    "attention": (
        lambda: Net(attention, num_heads=4, stem=L(6, 16), norm=nn.LayerNorm(16), q=L(16, 16), k=L(16, 16),
                    v=L(16, 16), out=L(16, 16), last=nn.LayerNorm(16), up=L(16, 24), down=L(24, 16), head=L(16, 4)),
        (5, 6)),
    "packed": (
        lambda: prunus.separate_attention_(
            Net(lambda m, x: m.head(m.mix(*[m.stem(x)] * 3, need_weights=False)[0].mean(1)), stem=L(6, 16),
                mix=nn.MultiheadAttention(16, 4, batch_first=True), head=L(16, 4))), (5, 6)),
    "tagger": (
        lambda: prunus.separate_recurrence_(
            Net(lambda m, x: m.head(m.memory(F.relu(m.embed(x)))[0]), embed=L(6, 8),
                memory=nn.LSTM(8, 12, batch_first=True), head=L(12, 4))), (5, 6)),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(3, 24, 1, bias=False), B(24), nn.ReLU6(), C(24, 24, padding=1, groups=24),
                              B(24), nn.ReLU6(), nn.Conv2d(24, 16, 1), B(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                              L(16, 4)), IMAGE),
    "coded": (
        lambda: Net(lambda m, x: m.fc(F.relu(m.two(F.relu(m.bn(m.one(x))))).view(-1, 64)), bn=B(16), fc=L(64, 4),
                    one=C(3, 16, stride=2, padding=1), two=C(16, 16, stride=2, padding=1)), IMAGE),
    "halves": (
        lambda: Net(lambda m, x: m.head(F.relu(m.last(math.prod(m.both(x).chunk(2, 1)))).mean((2, 3))), both=C(3, 24),
                    last=C(12, 12), head=L(12, 4)), IMAGE),
    "branching": (
        lambda: Net(lambda m, x: m.two(F.relu(m.one(x)) if x.mean() > -9 else m.one(x)), one=L(20, 16), two=L(16, 4)),
        (20,)),
}  # fmt: skip


def network(net: str) -> nn.Module:
    """The network, with random numbers in its normalisations too, so that nothing is tied."""
    torch.manual_seed(SEED)
    model = NETS[net][0]()
    ranges = {"weight": (0.5, 1.5), "bias": (-0.3, 0.3), "running_mean": (-0.3, 0.3), "running_var": (0.5, 1.5)}
    for norm in (m for m in model.modules() if isinstance(m, B | nn.LayerNorm)):
        for name in (n for n in ranges if hasattr(norm, n)):
            nn.init.uniform_(getattr(norm, name), *ranges[name])
    return model.eval()


def given(net: str) -> tuple[nn.Module, Tensor, list[tuple[Tensor, Tensor]], Any]:
    """The network, example inputs, batches, and all of it as a source; labels follow a random linear rule."""
    parts = []
    for count in (EXAMPLES, 64, 65):
        x = torch.randn(count, *NETS[net][1], generator=torch.Generator().manual_seed(count))
        rows = x if net == "tagger" else x.flatten(1)  # of the tagger every position has a label
        parts.append((x, (rows @ torch.arange(4.0 * rows.shape[-1]).sin().view(-1, 4)).argmax(-1)))
    batches = list(zip(*(t.split(BATCH) for t in parts[0]), strict=True))
    data = API.DataSource("random", *(API.ArrayDataset(*p) for p in parts), 4, loss_fn=loss)
    return network(net), parts[0][0][:4], batches, data


def loss(outputs: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), None, None, -100, None, reduction, label_smoothing
    )


def by_field(value: Any) -> Record:
    """The fields of a dataclass, under the names that they had when the first golden file was written."""
    before = {now: old for old, now in getattr(value, "renamed", {}).items()}
    return {before.get(f.name, f.name): getattr(value, f.name) for f in fields(value)}


def plain(value: Any) -> Any:
    """Anything as JSON that tells every bit: tensors as digests, floats as text, modules by their state."""
    value = value.state_dict() if isinstance(value, nn.Module) else value
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        content = plain(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"{value.dtype} {list(value.shape)} {content}".removeprefix("torch.")
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()[:16]
    if is_dataclass(value):
        return {name: plain(part) for name, part in by_field(value).items() if name != "seconds"}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return repr(value) if isinstance(value, float) else value


def of_plan(text: str) -> Record:
    """A plan's JSON, groups by name; what follows from the kept units as digests."""
    plan = plain(json.loads(text))
    plan |= {name: plain(json.dumps(plan[name]).encode()) for name in ("tensors", "masked", "patterns")}
    return plan | {"groups": {g["name"]: {**g, "count": len(g["kept"])} for g in plan["groups"]}}


def of_model(model: nn.Module, x: Tensor) -> Record:
    with torch.no_grad():
        return {"kind": type(model).__name__, "state": plain(model), "output": plain(model.eval()(x))}


def of_result(result: Any, x: Tensor) -> Record:
    """What `prunus.prune` returns; the lines of the analysis without the sources that they end with."""
    found = plain({name: getattr(result, name) for name in ("scores", "verification", "stages")})
    found["scores"].pop("stages", None)
    for name, posterior in result.scores.posteriors.items():
        found["scores"]["posteriors"][name] |= {"mean": plain(posterior.mean())}
    lines = [re.sub(r"\s*\[?[\w./<>-]+\.py:\d+.*", "", line) for line in result.graph.explain().splitlines()]
    found |= {"passed": result.verification.passed, "analysis": lines, "model": of_model(result.model, x)}
    return {"plan": of_plan(result.plan.to_json()), **found}


def of_folder(net: str, folder: Path, x: Tensor) -> Record:
    """An artifact: its files but the card and what the manifest says of versions, summary, and what is loaded."""
    said = json.loads((folder / "manifest.json").read_text())
    kept = ("format", "model", "rewritten", "before", "after", "metrics", "no_program")
    found: Record = {k: plain(said[k]) for k in kept} | {"plan": of_plan((folder / "plan.json").read_text())}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found[path.name] = {n: plain(file.get_tensor(n)) for n in file.keys()}  # noqa: SIM118
            found[path.name]["metadata"] = plain(file.metadata())
    found |= {"loaded": of_model(prunus.load(folder, partial(network, net)), x)}
    if (folder / "program.json").exists():
        found["program.json"] = plain((folder / "program.json").read_bytes())
        found["program"] = of_model(prunus.load(folder), x)["output"]
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    found["summary"] = {k: plain(summary[k]) for k in SUMMARY if k in summary}
    return found | {"masks": plain(prunus.load_masks(folder))}


def pruned(net: str, method: str, *settings: str, again: bool = False, **options: Any) -> Record:
    """`prune` (from the file of its stages if `again`), `save` and `load`; the given network must be as it was."""
    model, x, batches, _ = given(net)
    made = {"method": API.resolve(method, settings), "data": batches, "loss_fn": loss, "seed": SEED, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        if again:
            API.prune(model, x, checkpoint=Path(folder) / "stages.pt", **made, **options)
            made |= {"checkpoint": Path(folder) / "stages.pt", "resume": True}
        result = API.prune(model, x, **made, **options)
        at = prunus.save(Path(folder) / "small", result.model, result.plan, metrics={"top-1": 12.5}, example_inputs=x)
        record = of_result(result, x) | {"artifact": of_folder(net, at, x), "dense": plain(model)}
    return record | {"joined": of_model(prunus.join_recurrence_(result.model), x)} if net == "tagger" else record


def masks(net: str, layers: list[str], **settings: Any) -> Record:
    model, x, batches, _ = given(net)
    done = API.masked(model, x, layers, DPP(**{"epochs": 2, "tune_epochs": 1, **settings}), batches, loss)
    found = {name: plain(getattr(done, name)) for name in MASKED} | {"output": of_model(done.model, x)["output"]}
    found["layouts"] = {n: [str(lay.pattern), lay.rows, lay.n, lay.k] for n, lay in done.layouts.items()}
    if done.proof is None:
        found["condensed"] = of_model(prunus.condense_(done.model, done.layouts, done.masks), x)
        found["dense_again"] = of_model(prunus.densify_(done.model), x)
    return found


def to_folder(run: Callable[..., Any], net: str, **options: Any) -> Record:
    """`compress` or `sparsify`, with everything that they write."""
    model, x, _, data = given(net)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        done = run(model, data, out=out, batch_size=BATCH, seed=SEED, progress=False, **options)
        result = of_result(done.result, x) if hasattr(done, "result") else {}
        return {"model": of_model(done.model, x), "result": result, "artifact": of_folder(net, out / "artifact", x)}


def finetuned(**settings: Any) -> Record:
    config, (model, _, _, data) = API.FinetuneConfig(epochs=2, batch_size=BATCH, **settings), given("residual")
    return plain(API.finetune(model, data, config, teacher=network("residual"), progress=False))


def by_hand() -> Record:
    """The steps one by one: trace, score, gates, allocate, select, plan, cut, optimiser, statistics, cost."""
    model, x, batches, _ = given("residual")
    graph, method = prunus.trace(model, x), prunus.DirichletPruning(min_steps=12)
    groups, trained = graph.groups(), torch.optim.Adam(model.parameters())
    loss(model.train()(x), batches[0][1][:4]).backward()
    trained.step()
    scores = prunus.fit(model.eval(), groups, method, batches, loss, num_data=EXAMPLES, seed=SEED).values
    with prunus.attach(model, groups, method.posterior) as gates:
        sampled = plain([model(x), gates.penalty(num_data=EXAMPLES)])
    asked = {"budget": prunus.Budget.parse("macs<=70%, params<=60%"), "allocation": A("uniform", round_to=1)}
    counts = prunus.allocate(graph, groups, scores, seed=SEED, **asked)
    plan = prunus.Plan.from_kept(graph, prunus.select(groups, scores, counts), method="by hand")
    small = prunus.apply_(copy.deepcopy(model), plan, x)
    carried = prunus.carry_optimizer(trained, model, small, plan).state
    found = {"sampled": sampled, "scores": plain(scores), "counts": counts, "plan": of_plan(plan.to_json())}
    found |= {"cut": of_model(small, x), "optimizer": [plain(carried[p]) for p in small.parameters()]}
    found |= {"cost": plain([prunus.count_cost(g) for g in (graph, prunus.trace(small, x))])}
    return found | {"statistics": of_model(prunus.reestimate_batch_norm(small, batches), x)}


COMPRESS = partial(to_folder, API.compress, recovery=API.FinetuneConfig(epochs=2))
QUICK, FREE = ("epochs=1", "min_steps=12"), ("beta=20", "lr=0.2")
STAGED, HALF, FEW = ("epochs=1", "tune_epochs=1", "lr=0.1"), {"budget": "macs<=50%"}, {"pruning_ratio": 0.4}
SETTINGS: Record = dict.fromkeys(("random", "l1", "l2", "bn_scale", "fpgm", "taylor", "fisher"), ())
SETTINGS |= {"dirichlet": QUICK, **dict.fromkeys(("rbp", "sbp", "bmrs", "vib", "l0"), STAGED)}
ELSEWHERE = dict.fromkeys(("dirichlet", "rbp", "l1", "taylor"), "lenet5") | {"bn_scale": "depthwise"}
CALLS: list[tuple[str, str, Sequence[str], Record]] = [
    *((ELSEWHERE.get(m, "residual"), m, settings, HALF if m in ELSEWHERE else FEW) for m, settings in SETTINGS.items()),
    ("residual", "dirichlet", (*QUICK, "joint=false"), {**FEW, "allocation": A("measured")}),
    ("residual", "taylor", (), {"budget": "macs<=60%, params<=50%", "allocation": A("global", round_to=1)}),
    ("perceptron", "rbp", ("epochs=2", *FREE), {}), ("perceptron", "sbp", FREE, {}), ("packed", "fisher", (), FEW),
    ("perceptron", "l0", (*FREE, "simultaneous=false"), {"budget": "params<=40%"}), ("coded", "l2", (), FEW),
    ("perceptron", "taylor", (), {"kept_counts": {"0": 12, "1": 9, "3": 7}}),
    ("attention", "taylor", (), {**HALF, "allocation": A("measured")}), ("tagger", "dirichlet", QUICK, FEW),
    ("attention", "l2", (), {"kept_counts": {"stem": 10, "up": 16}, "inexact": True}),
    ("attention", "dirichlet", QUICK, {"kept_counts": {"q": 8, "v": 12, "q.heads": 3}, "head_dims": True}),
    ("tagger", "vib", STAGED, {**HALF, "ignored_layers": ["embed"]}), ("depthwise", "bmrs", STAGED, HALF),
    ("coded", "sbp", STAGED, {"budget": "params<=50%"}), ("coded", "l1", (), {**FEW, "own_class": True}),
    ("halves", "taylor", (), {**FEW, "own_class": True}), ("branching", "l1", (), {**FEW, "follow_branches": True}),
]  # fmt: skip
RUNS: dict[str, Callable[[], Record]] = {
    f"prune/{net}/{method}/{','.join(options) or 'natural'}": partial(pruned, net, method, *settings, **options)
    for net, method, settings, options in CALLS
} | {
    "masks/weight": partial(masks, "lenet5", ["conv2"], pattern="weight 10%", epochs=1, rescale=True),
    "masks/nm": partial(masks, "perceptron", ["1", "3"], pattern="2:4", best_of=3, entropy_weight=0.01),
    "masks/kernel": partial(masks, "residual", ["a.0", "b.0"], pattern="kernel 50%", order="index"),
    "masks/filter": partial(masks, "residual", ["a.0", "b.0"], pattern="filter 50%"),
    "masks/batch": partial(masks, "coded", ["one", "two"], pattern="filter 50%", draws="batch", curvature=False),
    "masks/tile": partial(masks, "attention", ["q", "up"], pattern="tile 2 3/8", train_weights=False),
    "masks/tap": partial(masks, "residual", ["a.0"], pattern="tap 3/9 shared", resample_every=2),
    "masks/bits": partial(masks, "perceptron", ["1", "3"], pattern="weight 25%", bits=8, activation_bits=8),
    "masks/start": partial(masks, "tagger", ["head"], pattern="weight 50%", epochs=0, bits=4, per_channel=False),
    "compress/lenet5": partial(COMPRESS, "lenet5", method=API.resolve("dirichlet", QUICK), **HALF),
    "compress/residual": partial(COMPRESS, "residual", method=API.resolve("rbp", STAGED), **FEW),
    "compress/tagger": partial(COMPRESS, "tagger", method="taylor", budget="params<=60%"),
    "sparsify/weight": partial(to_folder, API.sparsify, "residual", method=DPP(pattern="weight 20%", epochs=2, bits=8)),
    "sparsify/filter": partial(to_folder, API.sparsify, "coded", method=DPP(pattern="filter 50%", epochs=2)),
    "finetune/sgd": finetuned,
    "finetune/adamw": partial(finetuned, optimizer="adamw", lr=1e-3, label_smoothing=0.1, patience=1),
    "stages/resumed": partial(pruned, "perceptron", "rbp", "epochs=1", again=True, budget="macs<=60%"),
    "steps/by_hand": by_hand,
    "defaults": lambda: {m: repr(API.resolve(m)) for m in SETTINGS} | {"dpp": repr(DPP())},
}
SMOKE = ("prune/perceptron/taylor/kept_counts", "masks/nm", "steps/by_hand", "defaults")


def machine() -> Record:
    cpu = path.read_text() if (path := Path("/proc/cpuinfo")).exists() else ""
    names, flags = re.findall(r"model name\s*: (.*)", cpu), re.findall(r"flags\s*: (.*)", cpu) or [""]
    found: Record = {"cpu": names[:1], "flags": sorted(f for f in flags[0].split() if re.match("avx|amx|fma", f))}
    found["onednn"] = [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")]
    versions = {d.name: d.version for d in metadata.distributions()}
    return found | {name: versions.get(name) for name in ("torch", "numpy", "scipy", "numba")}


def record_of(run: Callable[[], Record]) -> Record:
    """The record of one run after a trip through JSON, without places of files."""
    torch.manual_seed(0)
    try:
        record = run()
    except Exception as error:
        record = {"crash": " ".join(f"CRASHED: {type(error).__name__}: {error}".split())}
    text = re.sub(r"[\w./-]+\.py:\d+", "(source)", json.dumps(record))
    text = text.replace("allow=('own_class',) keeps it", "own_class=True keeps it")  # as notes said it before
    return json.loads(text.replace(tempfile.gettempdir(), "(folder)"))


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """`path: old -> new` for every place where two records differ."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key, "(none)"), new.get(key, "(none)"), f"{at}.{key}" if at else key)
    elif old != new:
        yield f"{at}: {json.dumps(old)[:90]} -> {json.dumps(new)[:90]}"


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="record the runs")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="run again and tell what differs")
    parser.add_argument("--only", default="*", metavar="GLOB", help="runs whose name fits")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("".join(f"note: no run for method {m!r}\n" for m in set(API.METHODS) - {*SETTINGS, "dpp"}), end="")
    here, records, changed, began = machine(), {}, 0, time.perf_counter()
    before = json.loads(asked.compare.read_text()) if asked.compare else {"machine": here, "runs": {}}
    for line in differences(before["machine"], here):
        print(f"warning: bits of another machine or version can't be compared: {line}")
    names = [n for n in {**RUNS, **before["runs"]} if fnmatch(n, asked.only) and (n in SMOKE or not asked.smoke)]
    for name in names:
        start = time.perf_counter()
        records[name] = record = record_of(RUNS.get(name, lambda: {"crash": "there is no such run"}))
        found = list(differences(before["runs"].get(name, {}), record)) if asked.compare else []
        said = "recorded" if not asked.compare else f"{len(found)} DIFFER" if found else "same"
        print(f"{said:<8} {name}  {time.perf_counter() - start:.1f} s  {record.get('crash', '')}".rstrip(), flush=True)
        print("".join(f"    {line}\n" for line in found[:SHOWN]), end="")
        changed += bool(found)
    print(f"{len(names)} runs, {changed} differ, {time.perf_counter() - began:.0f} s")
    if asked.write:
        asked.write.write_text(json.dumps({"machine": here, "runs": records}, indent=1) + "\n")
    crashed = [n for n in names if "crash" in records[n]]
    return int(changed > 0 or not names or (bool(crashed) and asked.compare is None))


if __name__ == "__main__":
    raise SystemExit(main())
