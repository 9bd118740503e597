"""The reports of a ResNet-56, a tiny Llama and a run of masks inside weights: size, seconds to load, complaints (F6).

    PRUNUS_SHARED=DIR python benchmarks/report_pages.py --data CIFAR-DIR [--only resnet56 llama dpp] [--runs DIR]
        [--screenshots DIR] [--repeats 3]

The runs are short, on few examples: what is looked at is the page, not the network. One that is in `--runs` is not made
again. Pages are opened from disk in headless Chromium at 1440 and 390 pixels, light and dark; loading ends when every
chart is drawn. PRUNUS_SHARED holds `models/cifar10-resnet` and `models/llama-stories260k`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from given import TRAIN, brief, cifar10
from nets import load_checkpoint, resnet8, resnet56
from options import Parser, needs, scratch, skip, smoking
from prunus.data.datasets import DataSource, next_tokens
from prunus.data.sources import load_data
from prunus.pipeline.demo import LeNet5, train_dense
from prunus.recovery.config import FinetuneConfig
from real_nets import stories_llama
from record import write

SIZES, SCHEMES = (1440, 390), ("light", "dark")
BATCH, TEXTS, LENGTH = 32, 192, 64
QUICK = prunus.RunSettings(modes=("eager",), batch_size=BATCH)


def shared(*parts: str) -> Path:
    """A file of the shared weights."""
    return Path(os.environ["PRUNUS_SHARED"], "models", *parts)


def few(data: DataSource, train: int, rest: int) -> DataSource:
    """The first examples of every part."""
    parts = [p.subset(torch.arange(min(n, len(p)))) for p, n in
             ((data.train, train), (data.validation, rest), (data.test, rest))]  # fmt: skip
    return DataSource(f"{data.name}, {len(parts[0])} images", *parts, data.num_classes, augment=data.augment)


def of_resnet56(args: Any, out: Path) -> None:
    """ResNet-56 to 60 % of its MACs by losses measured on 128 images."""
    data = few(cifar10(args), 512, 256)
    model = resnet8().eval()
    if not smoking():
        model = load_checkpoint(resnet56(), shared("cifar10-resnet", "resnet56-4bfd9763.th")).eval()
    prunus.compress(
        model, data, method=brief(prunus.DirichletPruning(min_steps=60)), target="macs<=60%",
        allocation=prunus.Allocation("measured"), repair=prunus.RepairConfig(examples=128),
        recovery=FinetuneConfig(epochs=2, batch_size=64, lr=0.001), out=out, progress=False, run=QUICK,
    )  # fmt: skip


def of_llama(args: Any, out: Path) -> None:
    """A Llama of 260,032 parameters to 70 % of its MACs, on texts that it made itself."""
    needs("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    if smoking():
        model = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_key_value_heads=2, **sizes)).eval()
    else:
        model = stories_llama(shared("llama-stories260k", "stories260K.bin")).eval()
    count, length = (TRAIN, 8) if smoking() else (TEXTS, LENGTH)
    first = torch.ones(count, 1, dtype=torch.int64)
    texts = model.generate(
        first, do_sample=True, top_k=0, max_new_tokens=length, min_new_tokens=length, pad_token_id=0
    )  # fmt: skip
    parts = [next_tokens(texts[a * count // 6 : b * count // 6]) for a, b in ((0, 4), (4, 5), (5, 6))]
    method = brief(prunus.DirichletPruning(min_steps=60))
    data = DataSource("its own samples", *parts, 512)
    prunus.compress(model, data, method=method, target="macs<=70%", out=out, progress=False, run=QUICK)


def of_dpp(args: Any, out: Path) -> None:
    """LeNet-5 with every tenth weight, on the digits of the demo."""
    data = load_data("digits", seed=0)
    data = few(data, 128, 32) if smoking() else data
    torch.manual_seed(0)
    model: nn.Module = LeNet5()
    train_dense(model, data, epochs=1 if smoking() else 3, progress=False)
    method = prunus.DynamicProbabilisticPruning(epochs=1 if smoking() else 3, tune_epochs=1)
    prunus.compress(model, data, method=method, target="weight 10%", out=out, progress=False, run=QUICK)


PICTURED = ("resnet56", "dpp")
"""Whose features show pictures of data without an open licence: screenshots leave them out."""
RUNS: dict[str, Callable[[Any, Path], None]] = {"resnet56": of_resnet56, "llama": of_llama, "dpp": of_dpp}


def opened(browser: Any, address: str, width: int, scheme: str, shot: Path | None, pictured: bool) -> dict[str, Any]:
    """How long a page took until every chart was drawn, and what the browser complained of."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    seconds = time.perf_counter() - start
    wider = page.evaluate("document.documentElement.scrollWidth") - width
    if shot is not None:
        from PIL import Image

        shot.parent.mkdir(parents=True, exist_ok=True)
        if pictured:
            page.add_style_tag(content="#features { display: none }")
        page.screenshot(path=shot, full_page=True)
        Image.open(shot).convert("RGB").quantize(48).save(shot, optimize=True)
    page.close()
    return {"seconds": seconds, "complaints": said, "wider_by": max(0, wider)}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_data("CIFAR-10's binary version")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--runs", type=Path, default=Path("runs/report_pages"))
    parser.add_argument("--screenshots", type=Path)
    parser.add_repeats(3, small=1)
    args = parser.parse_args()
    needs("playwright", "PIL")
    from playwright.sync_api import sync_playwright

    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        skip("there is no Chromium")
    torch.set_num_threads(1)
    found = {}
    for name in args.only:
        out = (scratch() if smoking() else args.runs) / name
        if not (out / "artifact").exists():
            RUNS[name](args, out)
        start = time.process_time()
        page = prunus.report(out)
        found[name] = {"bytes": page.stat().st_size, "make_seconds": time.process_time() - start, "opened": {}}
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=binary, args=["--no-sandbox"])
            for width in SIZES:
                for scheme in SCHEMES:
                    at = f"{width} {scheme}"
                    shot = None if args.screenshots is None else args.screenshots / f"{name}-{width}-{scheme}.png"
                    runs = [
                        opened(browser, page.as_uri(), width, scheme, shot, name in PICTURED)
                        for _ in range(args.repeats)
                    ]
                    seconds = [run["seconds"] for run in runs]
                    found[name]["opened"][at] = {**runs[0], "seconds": statistics.median(seconds)}
            browser.close()
        slowest = max(o["seconds"] for o in found[name]["opened"].values())
        said = sum(len(o["complaints"]) for o in found[name]["opened"].values())
        print(
            f"{name}: {found[name]['bytes']:,} bytes, loads in {slowest:.2f} s at worst, {said} complaints", flush=True
        )
    write("report_pages", found)


if __name__ == "__main__":
    main()
