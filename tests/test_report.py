"""The report: one page from the run's folder, with nothing fetched, everything escaped, and what is missing said."""

from __future__ import annotations

import functools
import json
import operator
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.errors import ArtifactError, ConfigError
from prunus.files.manifest import MANIFEST
from prunus.formats.run import FEATURES, RECORD, SUMMARY
from prunus.graph.flow import data_flow
from prunus.plan.cost import CostModel
from prunus.plan.plan import GroupPlan
from prunus.recovery.config import FinetuneConfig
from prunus.reports import provenance as provenance_module
from prunus.reports.charts import mask_curves, posterior, units_drawn
from prunus.reports.features import Features, features_of, read_features
from prunus.reports.folder import read_run
from prunus.reports.html import embedded
from prunus.reports.offers import offers_of
from prunus.reports.pictures import png_address
from prunus.reports.record import ScoreRecord, read_record, record_of

HOSTILE = "</script><img src=x onerror=alert(1)> & größer 🍑 \u2028"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)
        self.größer, self.second = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        stream = torch.relu(self.first(images))
        stream = stream + self.second(torch.relu(self.größer(stream)))
        return self.out(stream.mean((2, 3)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    part = ArrayDataset(torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8), torch.arange(24) % 3)
    out = tmp_path_factory.mktemp("report") / "run"
    prunus.compress(
        Residual(),
        DataSource(HOSTILE, part, part, part, 3),
        method=prunus.DirichletPruning(min_steps=4),
        target="macs<=60%",
        out=out,
        recovery=FinetuneConfig(epochs=1, batch_size=24),
        progress=False,
        run=prunus.RunSettings(modes=("eager",)),
    )
    return out


class Page(HTMLParser):
    """Addresses and elements of a page, and the text of its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.elements: list[str] = []
        self.handlers: list[str] = []
        self.data, self.policy, self._reading = "", "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.elements.append(tag)
        self.addresses += [named[k] or "" for k in ("src", "href", "action", "data", "srcset") if k in named]
        self.handlers += [k for k in named if k.startswith("on")]
        self._reading = named.get("id") == "data"
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""

    def handle_data(self, data: str) -> None:
        self.data += data if self._reading else ""
        self._reading = False


def test_the_page_is_whole_in_itself(run: Path) -> None:
    text = prunus.report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in page.addresses)
    assert not {"link", "iframe", "object", "base", "form"} & set(page.elements)
    assert page.handlers == []
    assert page.policy.startswith("default-src 'none';")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert len(text.encode()) < 3_000_000


def test_texts_of_the_run_do_nothing_and_read_as_they_are(run: Path) -> None:
    text = prunus.report(run).read_text(encoding="utf-8")
    assert text.count("</script>") == 3, "ours: data, charts and what moves"
    assert "<img src=x" not in text
    assert "größer 🍑" in text
    assert json.loads(embedded({HOSTILE: [HOSTILE]})) == {HOSTILE: [HOSTILE]}
    assert not re.search("[<>&]", embedded({HOSTILE: HOSTILE}))


def test_the_charts_show_what_the_run_found(run: Path) -> None:
    data = json.loads(Page(prunus.report(run).read_text(encoding="utf-8")).data)
    found = read_run(run)
    plan, record = found.plan, found.record
    assert record is not None
    assert set(data["groups"]) == {g.name for g in plan.groups}
    for group in plan.groups:
        series = {s["name"]: s["data"] for s in data["groups"][group.name]["series"]}
        assert (len(series["stays"]), len(series["goes"])) == (len(group.kept), group.units - len(group.kept))
        means = [point["value"][1] for point in sorted(series["stays"] + series["goes"], key=lambda p: p["value"][0])]
        assert means == sorted(means, reverse=True)
    network = data["charts"]["network"]["series"]
    layers = {s.name: i for i, s in enumerate(record.steps)}
    assert network[1]["data"][layers["größer"]]["value"] == 12
    assert network[2]["data"][layers["größer"]]["value"] == len(plan.kept["größer"])
    assert "locked: is an output of the model (output)" in network[0]["data"][layers["out"]]["tip"]
    assert any("test_report.py:" in line for line in network[0]["data"][layers["out"]]["tip"])
    assert {"learning", "recovery", "repair", "budget", "price"} <= set(data["charts"])
    recovery = [value for _, value in data["charts"]["recovery"]["series"][0]["data"]]
    assert recovery == [epoch["validation_score"] for epoch in record.recovery]
    assert None not in recovery


def test_what_is_missing_is_said_and_what_is_damaged_refused(run: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(run, older, symlinks=True)
    (older / "artifact" / RECORD).unlink()
    (older / "artifact" / FEATURES).unlink()
    text = prunus.report(older / "artifact", tmp_path / "older.html").read_text(encoding="utf-8")
    assert "a release that wrote no record.json made the run" in text
    assert "parameters" in text
    assert 'id="network"' not in text
    said = {"format": 1, "scores": {"first": {"score": [1] * 8, "mean": [1] * 8, "measured": [1]}}}
    (older / "artifact" / RECORD).write_text(json.dumps(said))
    assert 'data-group="first"' not in prunus.report(older).read_text(encoding="utf-8"), "ends are missing"
    for damaged in ("{", '{"format": 9}', '{"format": 1, "steps": [{"name": "a", "kind": "layer", "after": [0]}]}'):
        (older / "artifact" / RECORD).write_text(damaged)
        with pytest.raises(ArtifactError, match=RECORD):
            prunus.report(older)
    with pytest.raises(ConfigError, match="no finished run"):
        prunus.report(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        prunus.report(None)  # type: ignore[arg-type]


DAMAGES: list[tuple[str, str, Any]] = [
    (SUMMARY, "loss", 3),
    (SUMMARY, "accuracy.dense", "high"),
    (SUMMARY, "repair.0.before", []),
    (SUMMARY, "repair.0.samples", None),
    (SUMMARY, "proof.tolerance", None),
    (SUMMARY, "speed", "fast"),
    (SUMMARY, "speed.modes.0.ratio", 0),
    (SUMMARY, "speed.modes.0.before", {}),
    (SUMMARY, "layers", {"first": {"weights": 0}}),
    (SUMMARY, "versions", []),
    (MANIFEST, "sha256", "none"),
]


@pytest.mark.parametrize(("name", "place", "value"), DAMAGES)
def test_a_part_of_another_kind_is_damage_and_named(
    run: Path, tmp_path: Path, name: str, place: str, value: Any
) -> None:
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    file = tmp_path / "run" / "artifact" / name
    said = json.loads(file.read_text())
    *way, last = (int(part) if part.isdigit() else part for part in place.split("."))
    functools.reduce(operator.getitem, way, said)[last] = value
    file.write_text(json.dumps(said))
    with pytest.raises(ArtifactError, match=re.escape(name)):
        prunus.report(tmp_path / "run")


def test_numbers_that_are_none_and_names_that_are_no_text_are_shown(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    file = tmp_path / "run" / "artifact" / SUMMARY
    said = json.loads(file.read_text())
    said["loss"]["test"], said["data"] = None, "imagefolder:\udcff"
    file.write_text(json.dumps(said))
    text = prunus.report(tmp_path / "run").read_text(encoding="utf-8")
    assert '<td class="number">nan</td>' in text
    assert "imagefolder:?" in text


def test_the_report_goes_with_the_run_that_it_tells_of(tmp_path: Path) -> None:
    part = ArrayDataset(torch.randn(16, 6), torch.arange(16) % 3)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    settings = {"method": "l1", "progress": False, "run": prunus.RunSettings(modes=(), force=True)}
    for target in (0.5, 0.25):
        prunus.compress(net, DataSource("x", part, part, part, 3), target=target, out=tmp_path / "run", **settings)
        assert not (tmp_path / "run" / "report.html").exists()
        place = prunus.report(tmp_path / "run")
        assert place == (tmp_path / "run").resolve() / "report.html"
        assert f"pruning_ratio={target}" in place.read_text(encoding="utf-8")
    shutil.copytree(tmp_path / "run" / "artifact", tmp_path / "alone" / "artifact")
    assert prunus.report(tmp_path / "alone" / "artifact").parent.name == "artifact"
    assert [p.name for p in (tmp_path / "alone").iterdir()] == ["artifact"]


def test_pages_of_many_groups_stay_small() -> None:
    units = 600
    group = GroupPlan("layer", units, tuple(range(300)), tuple([0.5] * units))
    found = ScoreRecord(*[tuple(float(i) for i in range(units))] * 5)
    for groups, most in ((1, units), (200, 1 << 15), (2000, 1 << 15)):
        series = posterior(group, found, most=units_drawn(groups))["series"]
        drawn = sum(len(s["data"]) for s in series if s["name"] in ("stays", "goes"))
        assert min(units, 16) <= drawn
        assert drawn * groups <= most


def test_masks_that_keep_all_have_a_record_without_confidence(tmp_path: Path) -> None:
    net, images = Residual(), torch.zeros(2, 1, 8, 8)
    method = prunus.DynamicProbabilisticPruning(pattern="weight 100%", epochs=1, tune_epochs=0)
    data = [(torch.rand(8, 1, 8, 8), torch.arange(8) % 3)]
    done = prunus.prune(net, images, method=method, data=data, loss_fn=nn.functional.cross_entropy, progress=False)
    (tmp_path / RECORD).write_text(record_of(done.graph, done.plan, done.findings).to_json())
    record = read_record(tmp_path / RECORD)
    assert record is not None
    assert [epoch["confidence"]["out"] for epoch in record.masks] == [None, None]
    lines = mask_curves(record.masks)["confidence"]["series"]
    assert [v for _, v in lines[0]["data"]] == [None, None]


def test_pictures_of_two_colours_are_damage(tmp_path: Path) -> None:
    found = Features(inputs=np.zeros((1, 2, 4, 4), np.uint8))
    (tmp_path / FEATURES).write_bytes(found.to_bytes())
    with pytest.raises(ArtifactError, match="colours"):
        read_features(tmp_path / FEATURES)


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
def test_the_commit_is_of_this_package_and_not_of_what_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(
            ["git", "-C", str(tmp_path), *words], check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
        )
    said = {}
    for folder in ("libs", "src"):
        monkeypatch.setattr(provenance_module, "__file__", str(tmp_path / folder / "prunus/reports/provenance.py"))
        said[folder] = "commit" in provenance_module.provenance(nn.Linear(1, 1), nn.Linear(1, 1))
    assert said == {"libs": False, "src": True}


def test_units_stand_in_the_order_that_the_plan_goes_by() -> None:
    found = ScoreRecord(score=(3.0, 1.0, 2.0), mean=(-3.0, 1.0, 2.0), low=(-4.0, 0.0, 1.0), high=(-2.0, 2.0, 3.0))
    series = {s["name"]: s["data"] for s in posterior(GroupPlan("layer", 3, (0, 2)), found)["series"]}
    assert [point["value"] for point in series["stays"]] == [[1, -3.0], [2, 2.0]]
    assert [point["value"] for point in series["goes"]] == [[3, 1.0]]


def test_layers_are_drawn_in_data_flow() -> None:
    steps = data_flow(prunus.trace(Residual(), torch.zeros(2, 1, 8, 8)))
    assert [(s.name, s.kind, s.after) for s in steps] == [
        ("images", "input", ()),
        ("first", "layer", (0,)),
        ("größer", "layer", (1,)),
        ("second", "layer", (2,)),
        ("add", "junction", (1, 3)),
        ("out", "layer", (4,)),
        ("output", "output", (5,)),
    ]


@pytest.mark.parametrize("target", ["macs<=60%", 0.3])
def test_other_budgets_are_met_and_the_own_plan_is_among_them(target: str | float) -> None:
    result = prunus.prune(Residual(), torch.zeros(2, 1, 8, 8), method="l1", target=target)
    offers = offers_of(result.graph, result.plan, result.scores, None, 0)
    (own,) = [offer for offer in offers if offer.own]
    assert own.kept == {g.name: len(g.kept) for g in result.plan.groups}
    costs = CostModel(result.graph)
    assert all(costs.at(costs.counts(offer.kept)).macs == offer.macs for offer in offers)
    assert [o.macs for o in offers] == sorted((o.macs for o in offers), reverse=True)
    half = next(o for o in offers if o.macs <= result.plan.before.macs / 2)
    again = prunus.prune(Residual(), torch.zeros(2, 1, 8, 8), method="l1", target="macs<=50%")
    assert half.macs == again.plan.after.macs


def test_maps_are_what_the_reader_is_given(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 10, 1, bias=False), nn.Conv2d(10, 2, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(10.0).reshape(10, 1, 1, 1))
    images = torch.rand(4, 1, 8, 8)
    scores = {"0": torch.arange(10.0)}
    (tmp_path / "features").write_bytes(features_of(net, prunus.trace(net, images), scores, images).to_bytes())
    found = read_features(tmp_path / "features")
    assert found is not None
    assert found.inputs is not None
    maps = found.maps["0"]
    assert maps.units == (9, 8, 7, 6, 3, 2, 1, 0)
    assert maps.pictures[-1].max() == 0, "the channel that is nothing looks like nothing beside the others"
    seen = torch.from_numpy(maps.pictures[2]).double()
    expected = (7 * images[:3, 0].double()).clamp(max=9)
    assert float(torch.corrcoef(torch.stack([seen.flatten(), expected.flatten()]))[0, 1]) > 0.99


def test_pictures_are_png() -> None:
    import base64
    import io

    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    for given in (pixels, pixels[..., 0]):
        address = png_address(given)
        opened = image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        assert (np.asarray(opened) == given).all()


@pytest.mark.parametrize(("shape", "asked"), [((1, 8, 8), False), ((6,), True)])
def test_inputs_are_kept_only_if_they_may_be_and_can_be_seen(
    shape: tuple[int, ...], asked: bool, tmp_path: Path
) -> None:
    part = ArrayDataset(torch.randn(16, *shape), torch.arange(16) % 3)
    net = Residual() if len(shape) > 1 else nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    quiet = prunus.RunSettings(modes=(), features=asked)
    done = prunus.compress(net, DataSource("x", part, part, part, 3), method="l1", target=0.5, out=tmp_path, run=quiet)
    assert read_run(tmp_path).features is None
    assert "features (none were recorded)" in prunus.report(done).read_text(encoding="utf-8")


def test_layers_that_share_a_weight_are_two() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.inner, self.answer = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.answer.weight = self.words.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.answer(torch.relu(self.inner(self.words(tokens))))

    steps = data_flow(prunus.trace(Tied(), torch.zeros(2, 3, dtype=torch.int64)))
    assert [(s.name, s.after) for s in steps if s.kind == "layer"] == [
        ("words", (0,)),
        ("inner", (1,)),
        ("answer", (2,)),
    ]
