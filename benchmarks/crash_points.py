"""A run folder can't be lost (bars G3 and G7): crashes at every file operation, full disks, signals, two savers.

    python benchmarks/crash_points.py [--smoke] [--part points|disk|signals|savers]

points: a run over an older result, in which the folder is copied just before every file operation, the state that a
    process killed there leaves; a few of them are checked against processes that really end there.
disk: the same publishing with room for a part of it, at 30 fill levels of a small tmpfs (as root), or with a write that
    refuses after as many bytes.
signals: `prunus compress` ended by KILL, TERM and INT at 20 moments.
savers: two processes save two results into one folder, 500 times together, while a third reads.

Everywhere: what the folder holds is one whole result, the old or the new one; nothing of the user's is gone; after the
next run nothing of ours is left but the result. Ends with status 1 if any of that fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus.files.atomic
import prunus.formats.run
from options import Parser
from prunus.cli.app import main as command
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.errors import PruneError
from prunus.formats.artifact import artifact_files, load
from prunus.formats.run import commit, commit_or_rescue
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.pipeline.compress import compress
from prunus.pipeline.prune import prune
from prunus.pipeline.settings import RunSettings

TOY = """
import sys
sys.path.insert(0, {folder!r})
from crash_points import network, source
"""
MINE = {"notes.txt": "mine", "out/notes.txt": "mine", "out/artifact.old/thesis.txt": "mine",
        "out/artifact.part-x": "mine", "out/plan.json.part": "mine"}  # fmt: skip
OURS = {"artifact", "plan.json", "summary.json", "model.onnx", "figures", "stages.pt", "steps", "recipe.yaml"}


def network() -> nn.Module:
    """A small network."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def source() -> DataSource:
    """Random data for it."""
    part = ArrayDataset(torch.randn(24, 6, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 3)
    return DataSource("toy", part, part, part, 3)


def run(out: Path, seed: int) -> None:
    """A real run with everything that writes: stages, artifact, results on the test split, timing, pictures, ONNX."""
    method = RecursiveBayesianPruning(epochs=1, tune_epochs=1)
    done = compress(
        network(), source(), method=method, target=0.25 * (1 + seed), out=out, seed=seed, progress=False,
        run=RunSettings(8, force=True, modes=("eager",)),
    )  # fmt: skip
    assert done.saved is not None
    done.saved.add("model.onnx", b"onnx of seed %d" % seed)


@dataclass
class Site:
    """A folder with things of the user's and one run folder, and what its whole results look like."""

    root: Path
    results: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.root / "out"

    def furnish(self) -> None:
        """Put the user's own things there."""
        for name, text in MINE.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)

    def learn(self) -> None:
        """Remember the whole result that stands here, by its weights."""
        self.results[self.weights()] = self.parts()

    def weights(self) -> str:
        """Digest of the weights that stand here."""
        return hashlib.sha256((self.out / "artifact" / "weights.safetensors").read_bytes()).hexdigest()

    def parts(self) -> dict[str, str]:
        """Digests of what tells two results apart: all files but those which grow while one is completed."""
        places = ["plan.json", "model.onnx", "figures/stages.png"]
        files = {name: self.out / name for name in places}
        files |= {f"artifact/{name}": self.out / "artifact" / name for name in ["plan.json", "weights.safetensors"]}
        found = {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items() if p.is_file()}
        summary = json.loads((self.out / "summary.json").read_text())
        return {**found, "summary.json": repr((summary["seed"], summary["kept"], summary["asked"]))}

    def faults(self, where: Path | None = None) -> list[str]:
        """What is wrong with a copy of this folder (or with itself) after a crash."""
        there = Site(where or self.root, self.results)
        wrong = [f"{n} is gone" for n, text in MINE.items() if not _reads(there.root / n, text)]
        try:
            model = load(there.out / "artifact", network)
            model(source().example_inputs)
            whole = self.results.get(there.weights())
            if whole is None:
                wrong.append("neither the old nor the new weights")
            else:
                parts = there.parts()
                wrong += [f"{n} is of another result" for n in parts if parts[n] != whole.get(n)]
                wrong += [f"no {n}" for n in ("plan.json", "artifact/plan.json") if n not in parts]
        except (PruneError, OSError, ValueError) as error:
            wrong.append(f"{type(error).__name__}: {error}".replace("\n", " "))
        return wrong

    def leftovers(self, where: Path | None = None) -> list[str]:
        """What the next run leaves beside its result, when it has published one here."""
        there = Site(where or self.root)
        publish(there.out, NEXT)
        expected = {Path(n).parts[0] if "/" not in n else "/".join(Path(n).parts[:2]) for n in MINE} | {"out"}
        names = [str(p.relative_to(there.root)) for p in (*there.root.iterdir(), *there.out.iterdir())]
        odd = [n for n in names if n not in expected and n.removeprefix("out/") not in OURS - {"figures"}]
        return [f"{n} is left behind" for n in odd]


def _reads(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


NEXT: tuple[dict[str, bytes], dict[str, Any]] = ({}, {})


def made(seed: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and summary of a result, ready to be published."""
    inputs = source().example_inputs
    result = prune(network(), inputs, method="random", target=0.5, seed=seed)
    files = artifact_files(result.model, result.plan, example_inputs=inputs)
    return files, {"seed": seed, "kept": {g.name: len(g.kept) for g in result.plan.groups}, "asked": "half"}


def publish(out: Path, ready: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    """What a run does with its files: the result, then the summary anew, and ONNX."""
    files, summary = ready
    saved = commit_or_rescue(out, files, summary)
    saved.add_summary({**summary, "speed": 1.0})
    saved.add("model.onnx", b"onnx of seed %d" % summary["seed"])


def child(work: Callable[[], None]) -> int:
    """Do something in a process of its own. Returns its status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except PruneError:
            status = 2
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def watched(before: Callable[[str], None]) -> Iterator[None]:
    """Call `before` with the name of every operation that changes files, before it happens."""
    active, inside = [True], [False]
    changing = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")

    def tell(name: str) -> None:
        if active[0] and not inside[0]:
            inside[0] = True
            try:
                before(name)
            finally:
                inside[0] = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        flags = arguments[2] if event == "open" else 0
        if event in changing or (event == "open" and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
            tell(event)

    def told(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            tell(name)
            return function(*arguments, **options)

        return call

    write, fsync = os.write, os.fsync
    exchanges = (prunus.files.atomic.exchange, prunus.formats.run.exchange)
    sys.addaudithook(hook)  # it stays for good, and is silent afterwards
    os.write, os.fsync = told("os.write", write), told("os.fsync", fsync)  # type: ignore[assignment]
    prunus.files.atomic.exchange = told("exchange", exchanges[0])
    prunus.formats.run.exchange = told("exchange", exchanges[1])
    try:
        yield
    finally:
        active[0] = False
        os.write, os.fsync = write, fsync
        prunus.files.atomic.exchange, prunus.formats.run.exchange = exchanges


def old_and_new(root: Path) -> Site:
    """A site with an older result in place, which knows the new one too."""
    site = Site(root)
    site.furnish()
    run(site.out, 1)
    site.learn()
    shutil.copytree(root, root.with_name("old"), symlinks=True)
    run(site.out, 0)
    site.learn()
    shutil.rmtree(root)
    shutil.copytree(root.with_name("old"), root, symlinks=True)
    return site


def crash_at_every_operation(work: Path, smoke: bool) -> list[str]:
    """The state before every file operation of a run over an older result."""
    site = old_and_new(work / "site")
    states: list[tuple[str, Path]] = []

    def copy(name: str) -> None:
        place = work / "states" / f"{len(states):04d}"
        shutil.copytree(site.root, place, symlinks=True)
        states.append((name, place))

    with watched(copy):
        run(site.out, 0)
    faults = [f"point {n} ({name}): {f}" for n, (name, at) in enumerate(states) for f in site.faults(at)]
    real = range(len(states) // 20, len(states), max(1, len(states) // (3 if smoke else 6)))
    for number in real:
        faults += _really_crashed(site, work, number, states[number][1])
    for number, (name, at) in list(enumerate(states))[:: 4 if smoke else 1]:
        faults += [f"point {number} ({name}), next run: {f}" for f in site.leftovers(at)]
    kinds = ", ".join(f"{n} {k}" for k, n in Counter(name for name, _ in states).items())
    print(f"points: {len(states)} file operations ({kinds}); {len(real)} of them by a process that really ended there")
    return faults


def _really_crashed(site: Site, work: Path, number: int, state: Path) -> list[str]:
    shutil.rmtree(site.root)
    shutil.copytree(work / "old", site.root, symlinks=True)
    count = [0]

    def end(name: str) -> None:
        if count[0] == number:
            os._exit(9)
        count[0] += 1

    def crashing() -> None:
        with watched(end):
            run(site.out, 0)

    status = child(crashing)
    if status != 9:
        return [f"point {number}: the process ended with {status} instead"]
    same = [_names(site.root) == _names(state)]
    return site.faults() + ([] if all(same) else [f"point {number}: other files than in the copy of this moment"])


def _names(root: Path) -> list[str]:
    """Names below a folder; those drawn at random alike."""
    names = (p.relative_to(root).as_posix() for p in root.rglob("*"))
    return sorted("/".join(".prunus" if s.startswith(".prunus-") else s for s in n.split("/")) for n in names)


def full_disk(work: Path, smoke: bool) -> list[str]:
    """Publishing a result where there is room for a part of it."""
    levels, faults, ends = (6 if smoke else 30), [], Counter[str]()
    new = made(0)
    needed = sum(len(data) for data in new[0].values()) + 65536
    mount = work / "disk"
    mount.mkdir()
    size = 8 * needed
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    try:
        site = Site(mount / "site")
        site.furnish()
        publish(site.out, made(1))
        site.learn()
        publish(site.out, new)
        site.learn()
        for level in range(levels):
            room = needed * level // (levels - 1)
            shutil.rmtree(site.out)
            site.furnish()
            publish(site.out, made_once(1))
            ballast = mount / "ballast"
            if mounted:
                free = shutil.disk_usage(mount).free
                ballast.write_bytes(bytes(max(0, free - room)))
            status = child(lambda room=room: _publish_within(site.out, new, None if mounted else room))
            ends[{0: "the new one", 2: "refused, typed"}.get(status, f"status {status}")] += 1
            if status not in (0, 2):
                faults.append(f"level {level}: the process ended with {status}")
            faults += [f"level {level}: {f}" for f in site.faults()]
            ballast.unlink(missing_ok=True)
            ends["put elsewhere, said"] += any(site.root.with_name("rescue").iterdir())
            shutil.rmtree(site.root.with_name("rescue"))
            faults += [f"level {level}, next run: {f}" for f in site.leftovers()]
    finally:
        if mounted:
            subprocess.run(["umount", str(mount)], check=False)
    how = f"a tmpfs of {size:,} bytes" if mounted else "writes that refuse with ENOSPC (no tmpfs can be mounted here)"
    print(f"disk: {levels} fill levels of {how}: " + ", ".join(f"{n} {k}" for k, n in ends.items()))
    return faults


ONCE: dict[int, tuple[dict[str, bytes], dict[str, Any]]] = {}


def made_once(seed: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """`made`, remembered."""
    return ONCE.setdefault(seed, made(seed)) if seed not in ONCE else ONCE[seed]


def _publish_within(out: Path, ready: tuple[dict[str, bytes], dict[str, Any]], room: int | None) -> None:
    tempfile.tempdir = str(out.parent.parent / "rescue")  # the last resort is on the same disk
    os.makedirs(tempfile.tempdir, exist_ok=True)
    if room is not None:
        left, write = [room], os.write

        def limited(handle: int, data: Any) -> int:
            if len(data) > left[0]:
                raise OSError(28, "No space left on device")
            left[0] -= len(data)
            return write(handle, data)

        os.write = limited  # type: ignore[assignment]
    publish(out, ready)


def signals(work: Path, smoke: bool) -> list[str]:
    """The command, ended at many moments."""
    site, faults, ends = Site(work / "site"), [], Counter[str]()
    site.furnish()
    script = work / "toy.py"
    script.write_text(TOY.format(folder=str(Path(__file__).parent)))
    arguments = ["compress", f"{script}:network", "--data", f"{script}:source", "--method", "taylor",
                 "--recover", "epochs=1", "--export", "no-onnx", "--force", "--out", str(site.out)]  # fmt: skip

    def compressing(seed: int) -> None:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        try:
            command([*arguments, "--seed", str(seed), "--target", str(0.5 + 0.25 * seed)])
        except SystemExit as end:
            os._exit(int(end.code or 0))

    for seed in (1, 0):
        began = time.perf_counter()
        assert child(lambda seed=seed: compressing(seed)) == 0
        lasted = time.perf_counter() - began
        site.learn()
    assert len(site.results) == 2, "the old and the new result must differ"
    old = work / "old"
    child(lambda: compressing(1))
    shutil.copytree(site.root, old, symlinks=True)
    kinds = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    moments = 4 if smoke else 20
    for number in range(moments):
        for kind in kinds if not smoke else kinds[number % 3 : number % 3 + 1]:
            shutil.rmtree(site.root)
            shutil.copytree(old, site.root, symlinks=True)
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                try:
                    compressing(0)
                finally:
                    os._exit(1)
            # Three quarters of the moments fall into the last third, where the files are written.
            share = number / moments
            time.sleep(lasted * (share * 8 / 3 if share < 0.25 else 2 / 3 + (share - 0.25) / 2))
            os.kill(pid, kind)
            os.waitpid(pid, 0)
            ends["old" if site.weights() == next(iter(site.results)) else "new"] += 1
            faults += [f"moment {number}, {kind.name}: {f}" for f in site.faults()]
            faults += [f"moment {number}, {kind.name}, next run: {f}" for f in site.leftovers()]
    print(f"signals: {sum(ends.values())} runs of about {lasted:.1f} s ended: " + str(dict(ends)))
    return faults


def savers(work: Path, smoke: bool) -> list[str]:
    """Two processes that save into one folder, and a reader."""
    site, faults = Site(work / "site"), []
    site.furnish()
    ready = [made(0), made(1)]
    for one in ready:
        commit(site.out, *one)
        site.learn()
    each = 20 if smoke else 250

    def saving(which: int) -> None:
        for _ in range(each):
            commit(site.out, *ready[which])
            (prunus.files.atomic.write_bytes)(site.out / "shared.json", ready[which][0]["plan.json"])

    pids = []
    for which in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                saving(which)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    ends, loads = {}, 0
    while len(ends) < 2:
        try:
            model = load(site.out / "artifact", network)
            loads += 1
            del model
        except PruneError as error:
            faults.append(f"a reader met {type(error).__name__}: {error}".replace("\n", " "))
        for pid in set(pids) - set(ends):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ends[pid] = os.waitstatus_to_exitcode(status)
    faults += [f"a saver ended with {status}" for status in ends.values() if status]
    (site.out / "shared.json").unlink(missing_ok=True)
    faults += site.faults() + site.leftovers()
    print(f"savers: 2 processes, {2 * each} results into one folder; a third loaded {loads} of them meanwhile")
    return faults


PARTS = {"points": crash_at_every_operation, "disk": full_disk, "signals": signals, "savers": savers}


def main() -> None:
    """Run the parts; the status says whether anything was lost."""
    parser = Parser(__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be given again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    NEXT[0].update(made(2)[0])
    NEXT[1].update(made(2)[1])
    faults = []
    for name in given.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="prunus-crash-") as folder:
            found = PARTS[name](Path(folder), given.smoke)
        faults += [f"{name}: {f}" for f in found]
    print(f"{len(faults)} violations", flush=True)
    for fault in faults[:50]:
        print(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
