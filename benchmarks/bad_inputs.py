"""What users get wrong, each on the command line in a process of its own: how it ends, how soon, what is said.

    python benchmarks/bad_inputs.py

Every case has to end with status 2, in under 5 s of CPU, with one paragraph that names the thing and says what to do,
no traceback, and every file as it was. Status 1 if one does not.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from options import Parser, smoking
from record import write

SECONDS = 5.0
NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    )

def table():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))

def half():
    return net().half()

def script():
    return torch.jit.trace(net().eval(), torch.randn(1, 1, 8, 8))

def locked():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

def fails():
    raise FileNotFoundError("the weights are not there")

def needs(path):
    return net()

def number():
    return 3

class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x
"""
DATA = """
import torch
from torch.utils.data import DataLoader, TensorDataset

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 4

def parts(x=X, y=Y):
    part = DataLoader(TensorDataset(x, y), 16)
    return part, part, part

def good():
    return parts()

def too_high():
    return parts(y=Y + 1)

def negative():
    return parts(y=Y - 1)

def decimal():
    return parts(y=Y.float())

def wide():
    return parts(x=X.repeat(1, 3, 1, 1))

def nan():
    return parts(x=torch.where(X > 2, torch.nan, X))

def alone():
    return parts()[0]

def two():
    return parts()[:2]

def without():
    part = DataLoader(TensorDataset(X), 16)
    return part, part

def empty():
    return parts(X[:0], Y[:0])

def number():
    return 3

def fails():
    raise OSError("image file is truncated")
"""
COMPRESS = ["compress", "net.py:net", "--data", "data.py:good", "--target", "macs<=50%", "--out", "new"]


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        name: what is wrong.
        words: the command line; paths are those of `made`.
        said: what has to be in the refusal.
    """

    name: str
    words: list[str]
    said: str


def compress(name: str, said: str, *, model: str = "net.py:net", data: str = "data.py:good", **options: str) -> Case:
    """A `compress` that is right but for what is given."""
    options = {"target": "macs<=50%", "out": "new", **options}
    words = ["compress", model, "--data", data]
    return Case(name, [*words, *(w for o, v in options.items() if v for w in (f"--{o}", v))], said)


def weights(name: str, file: str, said: str) -> Case:
    """Wrong weights."""
    return Case(f"weights: {name}", ["evaluate", "net.py:net", "--data", "data.py:good", "--weights", file], said)


CASES = [
    compress("model: no such file", "nonet.py", model="nonet.py:net"),
    compress("model: no such callable", "choose from", model="net.py:nett"),
    compress("model: file with a syntax error", "SyntaxError", model="broken.py:net"),
    compress("model: callable that fails", "the weights are not there", model="net.py:fails"),
    compress("model: callable with an argument", "needs", model="net.py:needs"),
    compress("model: callable that returns a number", "returned int", model="net.py:number"),
    compress("model: no such package", "nopackage", model="nopackage:net"),
    compress("model: no such folder of transformers", "config", model="hf:./nofolder"),
    compress("model: of no known form", "not of a known form", model="resnet18"),
    compress("model: TorchScript", "TorchScript", model="net.py:script"),
    compress("model: float16 with batch norm on a CPU", "float16", model="net.py:half"),
    compress("model: nothing to remove", "nothing to score", model="net.py:locked"),
    Case("model: branch on data", ["analyze", "net.py:Branch", "--shape", "2,3"], "follow_branches"),
    Case("no shape", ["analyze", "net.py:net"], "--shape 1,3,224,224"),
    Case("shape that is none", ["analyze", "net.py:net", "--shape", "big"], "1,3,224,224"),
    Case("shape that does not fit", ["analyze", "net.py:net", "--shape", "1,3,8,8"], "channels"),
    weights("no such file", "none.pt", "no such file"),
    weights("of another network", "other.pt", "0.weight"),
    weights("of other shapes", "shapes.pt", "5.weight"),
    weights("with keys too many", "more.pt", "head.bias"),
    weights("with keys too few", "less.pt", "5.bias"),
    weights("a whole pickled model", "whole.pt", "state_dict"),
    weights("a truncated file", "truncated.pt", "damaged"),
    weights("a damaged safetensors file", "damaged.safetensors", "damaged"),
    weights("NaN", "nan.pt", "NaN"),
    weights("a folder", "pictures", "pictures"),
    compress("data: a folder without its kind", "imagefolder:", data="pictures"),
    compress("data: no such folder of pictures", "nopictures", data="imagefolder:nopictures"),
    compress("data: a folder without pictures", "nothing", data="imagefolder:nothing"),
    compress("data: a damaged picture", "1.png", data="imagefolder:pictures"),
    compress("data: no such folder of MNIST", "nomnist", data="mnist:nomnist"),
    compress("data: a truncated file of MNIST", "train-images", data="mnist:mnist"),
    compress("data: labels above the classes", "the network has 4 outputs", data="data.py:too_high"),
    compress("data: labels below zero", "the network has 4 outputs", data="data.py:negative"),
    compress("data: labels that are no whole numbers", "loss_fn", data="data.py:decimal"),
    compress("data: channels that do not fit", "[2, 3, 8, 8]", data="data.py:wide"),
    compress("data: NaN", "NaN", data="data.py:nan"),
    compress("data: one part alone", "held-out", data="data.py:alone"),
    compress("data: without labels", "no targets", data="data.py:without"),
    compress("data: empty", "yields nothing", data="data.py:empty"),
    compress("data: callable that returns a number", "int", data="data.py:number"),
    compress("data: callable that fails", "image file is truncated", data="data.py:fails"),
    compress("data: a table without the column", "price", model="net.py:table", data="csv:t.csv", load="target=price"),
    compress("data: words in a table", "column 'b'", model="net.py:table", data="csv:words.csv", load="columns=a,b"),
    compress("data: a damaged archive", "damaged.npz", data="npz:damaged.npz"),
    compress("data: a setting that they have no use for", "size", data="npz:good.npz", load="size=9"),
    compress("data: a misspelt setting", "use size", load="sise=9"),
    Case("data: no test part", ["evaluate", "net.py:net", "--data", "data.py:two"], "no test part"),
    compress("target: none", "macs<=50%", target=""),
    compress("target: misspelt", "mac", target="mac<=50%"),
    compress("target: < in place of <=", "<=", target="macs<50%"),
    compress("target: an unknown resource", "macs, memory, params", target="flops<=50%"),
    compress("target: more than there is", "120%", target="macs<=120%"),
    compress("target: the sign of percent forgotten", "macs<=50%", target="macs<=50"),
    compress("target: can't be met", "reach", target="macs<=0.1%"),
    compress("target: a fraction above one", "1.5", target="1.5"),
    compress("target: no such group", "no prunable group", target="conv9=4"),
    compress("target: more units than there are", "cannot keep 9 of 8", target="0=9"),
    compress("target: a pattern for a method of units", "2:4", target="2:4"),
    compress("method: unknown", "dirichlet", method="dirichlett"),
    compress("method: misspelt setting", "use beta", set="bta=2"),
    compress("method: value out of range", "lr", set="lr=-1"),
    compress("recover: misspelt setting", "use epochs", recover="epoch=3"),
    compress("recover: value that is none", "epochs", recover="epochs=many"),
    compress("repair: misspelt setting", "use examples", repair="example=3"),
    compress("allocate: unknown scope", "uniform", allocate="scope=all"),
    compress("allow: unknown", "head_dims", allow="heads"),
    compress("ignore: no such layer", "zzz", ignore="zzz"),
    compress("export: unknown", "onnx", export="tflite"),
    compress("run: unknown way to run", "eager", run="modes=fast"),
    compress("labels: unknown word", "--labels none", labels="no"),
    Case("misspelt option", [*COMPRESS, "--sed", "3"], "--seed"),
    Case("a seed that is no number", [*COMPRESS, "--seed", "x"], "--seed"),
    Case("unknown command", ["compres"], "compress"),
    Case("no model", ["compress", "--data", "data.py:good"], "MODEL"),
    compress("out: a file", "t.csv", out="t.csv"),
    compress("out: below a file", "t.csv", out="t.csv/run"),
    compress("out: a disk that can't be written", "/proc", out="/proc/run"),
    compress("out: somebody's folder in the way", "artifact", out="occupied"),
    Case("resume and force at once", [*COMPRESS, "--run", "resume=true", "--run", "force=true"], "give one of them"),
    Case("recipe: no such file", ["compress", "--recipe", "no.yaml"], "no.yaml"),
    Case("recipe: no YAML", ["compress", "--recipe", "broken.yaml"], "no YAML"),
    Case("recipe: an unknown part", ["compress", "--recipe", "unknown.yaml"], "write target"),
    Case("artifact: truncated weights", ["evaluate", "artifact", "--data", "data.py:good"], "weights.safetensors"),
    Case("artifact: none", ["report", "pictures"], "pictures"),
    Case("export: unknown kind of file", ["export", "net.py:net", "x.h5", "--shape", "1,1,8,8"], ".onnx"),
    Case("export: a folder that is not there's parent is a file",
         ["export", "net.py:net", "t.csv/x.pt2", "--shape", "1,1,8,8"], "t.csv"),
    Case("benchmark: unknown way to run", ["benchmark", "net.py:net", "net.py:net", "--modes", "fast"], "eager"),
    Case("plan: a method that decides by itself",
         ["plan", "net.py:net", "--data", "data.py:good", "--method", "rbp"], "macs<=50%"),
]  # fmt: skip


def made(folder: Path) -> None:
    """The files that the cases name."""
    (folder / "net.py").write_text(NET)
    (folder / "data.py").write_text(DATA)
    (folder / "broken.py").write_text("def net(:\n")
    space: dict[str, object] = {}
    exec(NET, space)
    net = space["net"]()  # type: ignore[operator]
    state = net.state_dict()
    torch.save(nn.Sequential(nn.Linear(3, 3)).state_dict(), folder / "other.pt")
    torch.save({**state, "5.weight": torch.zeros(9, 32), "5.bias": torch.zeros(9)}, folder / "shapes.pt")
    torch.save({**state, "head.bias": torch.zeros(9)}, folder / "more.pt")
    torch.save({n: t for n, t in state.items() if n != "5.bias"}, folder / "less.pt")
    torch.save({**state, "5.bias": torch.full((4,), torch.nan)}, folder / "nan.pt")
    torch.save(nn.Sequential(nn.Linear(3, 3)), folder / "whole.pt")
    torch.save(state, folder / "truncated.pt")
    (folder / "truncated.pt").write_bytes((folder / "truncated.pt").read_bytes()[:900])
    (folder / "damaged.safetensors").write_bytes(b"\xff" * 64)
    pictures(folder)
    (folder / "mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / "mnist" / f"{name}-ubyte.gz").write_bytes(gzip.compress(b"\0" * 999)[:20])
    (folder / "t.csv").write_text("a,b,label\n" + "1,2,0\n2,1,1\n" * 20)
    (folder / "words.csv").write_text("a,b,label\n" + "1,x,0\n2,y,1\n" * 20)
    (folder / "damaged.npz").write_bytes(b"PK\3\4 no archive")
    labels = np.arange(40) % 4
    np.savez(folder / "good.npz", x_train=np.zeros((40, 1, 8, 8), np.float32), y_train=labels)
    (folder / "broken.yaml").write_text("model: [\n")
    (folder / "unknown.yaml").write_text("model: net.py:net\ndata: data.py:good\ntraget: 0.5\n")
    (folder / "occupied" / "artifact").mkdir(parents=True)
    (folder / "occupied" / "artifact" / "thesis.txt").write_text("do not lose me")
    artifact(net, folder / "artifact")


def pictures(folder: Path) -> None:
    """Two classes with a damaged picture among them, and a folder of classes without any."""
    from PIL import Image

    for kind in ("cats", "dogs"):
        (folder / "pictures" / kind).mkdir(parents=True)
        (folder / "nothing" / kind).mkdir(parents=True)
        for number in range(12):
            picture = np.random.default_rng(number).integers(0, 255, (8, 8), np.uint8)
            Image.fromarray(picture).save(folder / "pictures" / kind / f"{number}.png")
    damaged = folder / "pictures" / "cats" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:40])


def artifact(net: nn.Module, place: Path) -> None:
    """An artifact whose weights are cut off."""
    import prunus

    example = torch.randn(2, 1, 8, 8)
    result = prunus.prune(net.eval(), example, method="l1", target="macs<=50%", progress=False)
    prunus.save(place, result.model, result.plan)
    file = place / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def state_of(folder: Path) -> dict[str, str]:
    """Every file with its content, Python's byte code apart."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@dataclass(frozen=True)
class Outcome:
    """How a case ended; `wrong` is empty where it ended as it should."""

    name: str
    status: int
    seconds: float
    said: str
    wrong: str


def outcome_of(case: Case, folder: Path) -> Outcome:
    """Run a case in the folder."""
    before, used = state_of(folder), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "prunus", *case.words]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    text = " ".join(done.stderr.split()).replace(str(folder), "DIR")
    checks = {
        f"status {done.returncode}": done.returncode != 2,
        f"{seconds:.1f} s": seconds >= SECONDS,
        "a traceback": "Traceback" in done.stderr,
        f"no word of {case.said!r}": case.said not in text,
        "files have changed": state_of(folder) != before,
        "a new folder": (folder / "new").exists(),
    }
    wrong = ", ".join(what for what, found in checks.items() if found)
    return Outcome(case.name, done.returncode, round(seconds, 2), text[:200], wrong)


def main() -> int:
    """Print the table; 1 if a case does not end as it should."""
    parser = Parser(__doc__, only="out: a file")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name holds it")
    args = parser.parse_args()
    chosen = [c for c in CASES if args.only is None or args.only in c.name]
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made(folder)
        print(f"{'case':<56} {'status':>6} {'CPU s':>6}  said", flush=True)
        for case in chosen:
            each = outcome_of(case, folder)
            found.append(each)
            line = f"WRONG ({each.wrong}): {each.said}" if each.wrong else each.said[:80]
            print(f"{each.name:<56} {each.status:>6} {each.seconds:>6.1f}  {line}", flush=True)
    wrong = sum(bool(each.wrong) for each in found)
    slowest = max(each.seconds for each in found)
    print(f"{len(found)} cases, {wrong} wrong, slowest {slowest:.1f} s of CPU")
    if args.only is None or smoking():
        write("bad_inputs", {"cases": json.loads(json.dumps([asdict(each) for each in found]))})
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
