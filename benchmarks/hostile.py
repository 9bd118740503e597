"""G2: damaged and malicious artifacts, plans, weights, masks and checkpoints, tried one by one.

Every case is made by this script from a whole artifact, with right checksums wherever an attacker would make them, and
runs in a process of its own whose memory may grow by twice the artifact and what libraries load later. Allowed is a
typed refusal, or a model that runs. Not allowed: code that runs (a canary file), an untyped error, an allocation beyond
the bound, five seconds of CPU.

    python benchmarks/hostile.py [--only TEXT] [--smoke]
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import prunus
from hostile_programs import program_cases
from options import Parser
from prunus.cli.app import main as command_line
from prunus.errors import PruneError
from prunus.files.manifest import MANIFEST
from prunus.files.weightfile import read_state_dict
from prunus.formats.artifact import MASKS, PLAN, WEIGHTS

SECONDS = 5.0
LATE_LIBRARIES = 512 << 20
"""Bytes of address space for what is imported at the first use, stacks of threads and the allocator's arenas."""
HUGE = 2**70


class Net(nn.Module):
    """A convolution, a grouped one, batch norm and a linear layer: every kind of edit that a plan has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.norm(self.first(x)).relu()).mean((2, 3)))


class Runs:
    """Unpickled, it makes a folder: the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@dataclass(frozen=True)
class Case:
    """One attack: how the folder is changed, and what its victim calls on it."""

    name: str
    damage: Callable[[Path, Path], None]
    call: Callable[[Path], Any]


def signed(folder: Path) -> None:
    """Make the manifest's checksums right again."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["sha256"]:
        if (folder / name).is_file():
            manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def with_factory(folder: Path) -> Any:
    return prunus.load(folder, Net)(torch.ones(2, 3, 8, 8))


def without_factory(folder: Path) -> Any:
    return prunus.load(folder)(torch.ones(2, 3, 8, 8))


def applied(folder: Path) -> Any:
    torch.manual_seed(0)
    return prunus.apply_(Net().eval(), prunus.Plan.load(folder / PLAN), torch.ones(2, 3, 8, 8))(torch.ones(2, 3, 8, 8))


def evaluated(folder: Path) -> Any:
    """The command line, which ends with status 2 and one paragraph."""
    told = io.StringIO()
    try:
        with redirect_stderr(told), redirect_stdout(told):
            command_line(["export", str(folder), str(folder.parent / "out.onnx"), "--shape", "2,3,8,8"])
    except SystemExit as end:
        if end.code == 2 and "what:" in told.getvalue():
            raise PruneError("command line", told.getvalue()[:200], "") from None
        if end.code not in (0, None):
            raise RuntimeError(f"status {end.code}: {told.getvalue()[-300:]}") from None
    return None


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of a few entries of every kind: of long lists the first and the last."""
    if path:
        yield path
    if isinstance(data, dict):
        for key in data:
            yield from leaves(data[key], (*path, key))
    elif isinstance(data, list):
        for index in sorted({0, len(data) - 1} & set(range(len(data)))):
            yield from leaves(data[index], (*path, index))


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


def write(name: str, make: Callable[[Path], str | bytes], resign: bool = True) -> Callable[[Path, Path], None]:
    def damage(folder: Path, _: Path) -> None:
        made = make(folder)
        (folder / name).write_bytes(made if isinstance(made, bytes) else made.encode())
        if resign:
            signed(folder)

    return damage


def json_change(name: str, path: tuple[Any, ...], value: Any) -> Callable[[Path, Path], None]:
    return write(
        name, lambda f: json.dumps(replaced(json.loads((f / name).read_text()), path, value)), name != MANIFEST
    )


def plan_cases(whole: Path) -> Iterator[Case]:
    data = json.loads((whole / PLAN).read_text())
    values = {"null": None, "minus one": -1, "text": "7", "true": True, "huge": HUGE, "list": [[0]], "billion": 10**9}
    for number, path in enumerate(leaves(data)):
        for offset in range(2):
            label, value = list(values.items())[(2 * number + offset) % len(values)]
            name = f"plan {'.'.join(map(str, path))} = {label}"
            yield Case(name, json_change(PLAN, path, value), with_factory if offset else applied)
    texts: dict[str, bytes] = {
        "empty": b"", "deep lists": b"[" * 200_000, "deep objects": b'{"a":' * 200_000, "not UTF-8": b"\xff\xfe{}",
        "NaN": b'{"format": NaN}', "no object": b"3", "a long number": b'{"format": ' + b"9" * 10_000 + b"}",
        "bytes of zero": bytes(4096),
    }  # fmt: skip
    for label, text in texts.items():
        yield Case(f"plan is {label}", write(PLAN, lambda _, text=text: text), with_factory)


def manifest_cases(whole: Path) -> Iterator[Case]:
    data = json.loads((whole / MANIFEST).read_text())
    for path in leaves(data):
        for label, value in {"null": None, "text": "../../etc/passwd", "huge": HUGE, "list": []}.items():
            name = f"manifest {'.'.join(map(str, path))} = {label}"
            yield Case(name, json_change(MANIFEST, path, value), without_factory)
    digest = "0" * 64
    for label, names in {
        "empty": {}, "a path out": {"../../../etc/passwd": digest}, "an absolute path": {"/etc/passwd": digest},
        "unknown file": {**data["sha256"], "extra.bin": digest}, "no weights": {PLAN: data["sha256"][PLAN]},
        "digest of another kind": {**data["sha256"], WEIGHTS: 5}, "short digest": {**data["sha256"], WEIGHTS: "ab"},
    }.items():  # fmt: skip
        yield Case(f"manifest lists {label}", json_change(MANIFEST, ("sha256",), names), with_factory)
    for label, text in {"empty": b"", "deep": b"[" * 200_000, "not UTF-8": b"\xff\xfe", "list": b"[]"}.items():
        yield Case(f"manifest is {label}", write(MANIFEST, lambda _, text=text: text, False), with_factory)
    for name in (WEIGHTS, PLAN, MANIFEST):
        yield Case(f"{name} is missing", lambda f, _, name=name: (f / name).unlink(), with_factory)
        yield Case(f"{name} is a folder", partial(_as_folder, name), with_factory)


def _as_folder(name: str, folder: Path, _: Path) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def _weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path, Path], None]:
    def damage(folder: Path, _: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        signed(folder)

    return damage


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        raw = (folder / WEIGHTS).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + raw[8 + size :]

    return make


def weights_cases(whole: Path) -> Iterator[Case]:
    name = "first.weight"
    changes: dict[str, Callable[[dict[str, torch.Tensor]], None]] = {
        "half": lambda t: t.update({name: t[name].half()}),
        "double": lambda t: t.update({name: t[name].double()}),
        "int8": lambda t: t.update({name: t[name].to(torch.int8)}),
        "NaN": lambda t: t[name].flatten()[:1].fill_(torch.nan),
        "infinity": lambda t: t[name].flatten()[:1].fill_(torch.inf),
        "a tensor more": lambda t: t.update(more=torch.zeros(1)),
        "a tensor less": lambda t: t.pop(name),
        "another shape": lambda t: t.update({name: t[name].flatten()}),
        "nothing": lambda t: t.clear(),
    }
    for label, change in changes.items():
        for call in (with_factory, without_factory):
            yield Case(f"weights: {label}, {call.__name__}", _weights(change), call)
    headers: dict[str, Callable[[dict[str, Any]], None]] = {
        "offsets overlap": lambda h: [e.update(data_offsets=[0, 4]) for k, e in h.items() if k != "__metadata__"],
        "giant shape": lambda h: h[name].update(shape=[2**40, 2**20]),
        "negative shape": lambda h: h[name].update(shape=[-1]),
        "unknown dtype": lambda h: h[name].update(dtype="F1024"),
        "offsets beyond": lambda h: h[name].update(data_offsets=[0, 2**50]),
        "metadata is a list": lambda h: h.update(__metadata__=[1]),
        "a name with dots": lambda h: h.update({"../../x": h.pop(name)}),
    }
    for label, change in headers.items():
        yield Case(f"weights' header: {label}", write(WEIGHTS, _header(change)), with_factory)
    raw = (whole / WEIGHTS).read_bytes()
    for cut in (0, 4, 8, 100, len(raw) - 1):
        yield Case(f"weights cut at {cut}", write(WEIGHTS, lambda _, cut=cut: raw[:cut]), with_factory)
    for place in range(8, min(400, len(raw)), 24):
        flipped = bytearray(raw)
        flipped[place] ^= 0x20
        yield Case(f"weights, bit {place} flipped", write(WEIGHTS, lambda _, b=bytes(flipped): b), with_factory)
    yield Case("weights are a pickle", _pickled, with_factory)


def _pickled(folder: Path, canary: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Runs(canary)))
    signed(folder)


def mask_cases() -> Iterator[Case]:
    about = {"third": "weight 50%|8||"}
    packed = torch.tensor([[0xF0]] * 4, dtype=torch.uint8)
    bad: dict[str, tuple[dict[str, torch.Tensor], dict[str, str] | None]] = {
        "a count of 10**12": ({"third": packed}, {"third": "weight 50%|1000000000000||"}),
        "a negative count": ({"third": packed}, {"third": "weight 50%|-8||"}),
        "no metadata": ({"third": packed}, None),
        "too few fields": ({"third": packed}, {"third": "weight 50%"}),
        "no pattern": ({"third": packed}, {"third": "open('x')|8||"}),
        "a scale of NaN": ({"third": packed}, {"third": "weight 50%|8||nan"}),
        "bits of 77": ({"third": packed}, {"third": "weight 50%|8|77|"}),
        "floats": ({"third": packed.float()}, about),
        "one dimension": ({"third": packed.flatten()}, about),
        "no rows": ({"third": packed[:0]}, about),
        "unequal rows": ({"third": torch.tensor([[0xF0], [0xE0]], dtype=torch.uint8)}, about),
    }
    for label, (tensors, metadata) in bad.items():
        yield Case(f"masks: {label}", partial(_masks, tensors, metadata), prunus.load_masks)


def _masks(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, folder: Path, _: Path) -> None:
    save_file(tensors, folder / MASKS, metadata)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"][MASKS] = hashlib.sha256((folder / MASKS).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def pickle_cases() -> Iterator[Case]:
    makers: dict[str, Callable[[Path], Any]] = {
        "state dict": lambda canary: {"weight": Runs(canary)},
        "whole module": lambda canary: Net(),
        "list": lambda canary: [1, 2],
        "nested": lambda canary: {"state_dict": {"a": {"b": Runs(canary)}}},
    }
    for label, make in makers.items():
        yield Case(
            f"--weights: {label}",
            lambda f, canary, make=make: torch.save(make(canary), f / "w.pt"),
            lambda f: read_state_dict(f / "w.pt"),
        )
        yield Case(
            f"stages.pt: {label}", lambda f, canary, make=make: torch.save(make(canary), f / "stages.pt"), resumed
        )
    for label, text in {"empty": b"", "text": b"stages", "zip": b"PK\x03\x04" + bytes(100)}.items():
        yield Case(f"stages.pt is {label}", lambda f, _, text=text: (f / "stages.pt").write_bytes(text), resumed)


def resumed(folder: Path) -> Any:
    data = [(torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,)))]
    return prunus.prune(
        Net().eval(), data[0][0], method="rbp", data=data, loss_fn=nn.functional.cross_entropy, progress=False,
        checkpoint=prunus.Checkpoint(folder / "stages.pt", resume=True),
    ).model(data[0][0])  # fmt: skip


def hub_cases() -> Iterator[Case]:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return
    for kind in ("config", "model", "tokenizer"):
        yield Case(f"hf: folder with code for its {kind}", partial(_hub, kind), _loaded_from_hub)


def _hub(kind: str, folder: Path, canary: Path) -> None:
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(canary)!r})\nclass Evil: pass\n")
    auto = {"config": "AutoConfig", "model": "AutoModel", "tokenizer": "AutoTokenizer"}[kind]
    config = {"model_type": "evil", "architectures": ["Evil"], "auto_map": {auto: "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {auto: ["evil.Evil", None]}}))


def _loaded_from_hub(folder: Path) -> Any:
    from prunus.data.texts import tokenizer_of
    from prunus.models.huggingface import load_pretrained

    with io.StringIO("y\ny\ny\n") as answers:
        sys.stdin = answers
        try:
            tokenizer_of(str(folder))
        except PruneError:
            return load_pretrained(str(folder))
        return None


def tried(case: Case, whole: Path) -> tuple[str, str, float]:
    """Outcome, what was said, and seconds of CPU, of one case in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder, canary, report = Path(place) / "artifact", Path(place) / "canary", Path(place) / "report"
        shutil.copytree(whole, folder)
        case.damage(folder, canary)
        child = os.fork()
        if not child:
            _victim(case, folder, report)
        _, status, used = os.wait4(child, 0)
        seconds = used.ru_utime + used.ru_stime
        outcome, _, said = report.read_text().partition("\n") if report.exists() else (f"died, {status}", "", "")
        if canary.exists():
            outcome = "CODE RAN"
        elif seconds > SECONDS:
            outcome = "SLOW"
        return outcome, said, seconds


def _victim(case: Case, folder: Path, report: Path) -> None:
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + 2 * size + LATE_LIBRARIES
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    warnings.simplefilter("ignore")
    try:
        case.call(folder)
        text = "loaded\n"
    except PruneError as refusal:
        text = f"refused\n{type(refusal).__name__}: {refusal.where}: {refusal.what}"
    except MemoryError:
        text = "TOO MUCH MEMORY\n"
    except BaseException:
        text = "UNTYPED\n" + traceback.format_exc()[-1500:]
    report.write_text(text)
    os._exit(0)


def artifact(folder: Path) -> Path:
    """A whole one, small enough for hundreds of copies."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    result = prunus.prune(Net().eval(), x, method="l1", target=0.4)
    return prunus.save(folder, result.model, result.plan, example_inputs=x)


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        whole = artifact(Path(place) / "whole")
        for call in (with_factory, without_factory, applied, evaluated):
            call(whole)  # they work on a whole one, and what they import is imported
        programs = [Case(f"program: {n}", damage, prunus.load) for n, damage in program_cases(whole)]
        cases = [
            *plan_cases(whole), *manifest_cases(whole), *weights_cases(whole), *mask_cases(), *pickle_cases(),
            *hub_cases(), *programs,
        ]  # fmt: skip
        chosen = [c for c in cases if args.only in c.name][:: 10 if args.smoke else 1]
        counts: Counter[str] = Counter()
        slowest = 0.0
        for case in chosen:
            outcome, said, seconds = tried(case, whole)
            counts[outcome] += 1
            slowest = max(slowest, seconds)
            if outcome not in ("refused", "loaded"):
                print(f"{case.name}: {outcome} after {seconds:.1f} s\n{said}", flush=True)
    print(f"{len(chosen)} cases: {dict(counts)}; the slowest took {slowest:.1f} s")
    return int(set(counts) - {"refused", "loaded"} != set())


if __name__ == "__main__":
    sys.exit(main())
