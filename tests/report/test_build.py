"""The page of a run folder: what it says, what it leaves out, and what it must never do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tiebreak.audit.findings import at_most, finding
from tiebreak.records import InputError, to_dict
from tiebreak.report.build import build
from tiebreak.run.folder import write_json, write_text
from tiebreak.stats.intervals import Estimate

CHROMIUM = Path("/usr/bin/chromium")
Folder = Callable[..., Path]


def estimate(value: float, low: float, high: float, n: int, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n, **more}


def manifest(stage: str, day: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "stage": stage, "key": f"key-{stage}", "inputs": {}, "knobs": {}, "seed": 1, "versions": {"python": "3.11"},
        "counts": {}, "dropped": {}, "notes": [], "outputs": {}, "price": None, "seconds": 61.0,
        "started_at": f"2026-02-0{day}T10:00:00+00:00", "finished_at": f"2026-02-0{day}T10:01:01+00:00", **more,
    }  # fmt: skip


RESULTS = {
    "judge": {
        "single_order": estimate(0.84, 0.80, 0.88, 300, ties=0, excluded=12),
        "both_orders": estimate(0.95, 0.92, 0.97, 150, ties=0, excluded=6),
    },
    "reward": {
        "model": "reward", "held_out": estimate(0.73, 0.69, 0.77, 60, ties=0),
        "length_baseline": estimate(0.56, 0.52, 0.60, 60, ties=3, direction="shorter"),
        "truth": estimate(0.78, 0.74, 0.82, 50, ties=0, excluded=10), "too_long": 1,
        "margins": [(i % 17 - 5) / 4 for i in range(60)],
        "calibration": {"ece": 0.03, "brier": 0.2, "nll": 0.6, "n": 60, "bins": [
            {"confidence": 0.55, **estimate(0.5, 0.3, 0.7, 30)}, {"confidence": 0.9, **estimate(0.8, 0.6, 0.9, 30)},
        ]},
    },
    "win_rates": [
        {
            "of": "policy", "against": "sft", "judges": ["rule:world"], "rate": estimate(0.8, 0.75, 0.85, 400),
            "soft": None, "length_controlled": estimate(0.77, 0.72, 0.82, 400),
            "consistency": estimate(1.0, 0.99, 1.0, 400), "mean_length": {"policy": 8.8, "sft": 13.0}, "wins": 300,
            "ties": 40, "losses": 60, "invalid": 2, "skipped": 0, "both_bad": 0, "judgments": 800, "prompts": 400,
            "one_order": 0, "conflicts": 0, "true": estimate(0.815, 0.78, 0.85, 400, ties=66),
            "true_quality": {"policy": 2.01, "sft": 0.43},
        }
    ],
    "examples": [
        {
            "prompt": "Say <script>alert('prompt')</script> & go", "reference": "r",
            "answers": {
                "policy": {"text": "<img src=x onerror=alert(1)>", "quality": 3.0},
                "sft": {"text": "plain $x^{ text", "quality": None},
                "reference": {"text": "", "quality": 4.0},
            },
        }
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Write a run folder with the sections named; the names of people and judges try to break out of the page."""

    def write(*sections: str) -> Path:
        project = tmp_path / "run"
        recipe: dict[str, Any] = {"project": "run", **{name: {} for name in sections}}
        if "train" in sections:
            recipe["train"] = {"policy": {}, "reward": {}}
        if "evaluate" in sections:
            recipe["evaluate"] = {"truth": "world"}
        write_json(project / "recipe.json", recipe)
        for name in sections:
            WRITERS[name](project)
        return project

    return write


def _import(project: Path) -> None:
    counts = {"rows": 121, "prompts": 120, "responses": 240, "judgments": 120}
    dropped, splits = {"missing chosen": 1}, {"train": 108, "test": 12}
    write_json(
        project / "import/manifest.json", manifest("import", counts=counts, dropped=dropped, outputs={"splits": splits})
    )
    remark = {"reason": "missing chosen", "count": 1, "where": "votes.jsonl:121", "example": "{}", "kept": False}
    write_json(project / "import/report.json", [remark])


def _judge(project: Path) -> None:
    counts, dropped = {"pairs": 152, "judgments": 300, "invalid": 3}, {"identical texts, never asked": 2}
    knobs = {"by": "rule", "rule": "world", "orders": "both", "slot_bias": 0.2}
    write_json(
        project / "judge/manifest.json", manifest("judge", counts=counts, dropped=dropped, knobs=knobs, price=1.5)
    )


def _audit(project: Path) -> None:
    rows = [
        ("position.orders", 0.7, "same"), ("position.primacy", 0.25, "first"), ("position.recency", 0.05, "second"),
        ("position.bias", 0.2, "leans (95 % interval 19.0 to 21.0 %, n = 150 items)"),
    ]  # fmt: skip
    found = [
        to_dict(
            finding(check, "rule:<b>world</b>", said, Estimate(value, value - 0.01, value + 0.01, 150), at_most(0.1))
        )
        for check, value, said in rows
    ]
    write_json(project / "audit/manifest.json", manifest("audit", counts={"judgments": 300}))
    write_json(project / "audit/findings.json", found)


def _curate(project: Path) -> None:
    write_json(project / "curate/manifest.json", manifest("curate", counts={"pairs": 140, "ties kept": 4}))
    steps = [{"step": "drop", "unit": "pairs", "rows_in": 150, "rows_out": 140, "dropped": {"tie": 10}}]
    write_json(project / "curate/funnel.json", steps)


def _train(project: Path) -> None:
    for name in ("policy", "reward"):
        counts = {"rows": 126, "held out": 14, "steps": 30, "tokens": 9000, "parameters": 12345}
        made = manifest(f"train.{name}", counts=counts, knobs={"method": "dpo", "model": "sft"}, notes=["centred"])
        write_json(project / f"train/{name}/manifest.json", made)
        lines = [
            {"step": s, "loss": 0.7 - s / 100, "learning_rate": 1e-4, "rewards/margins": s / 9} for s in (1, 10, 20)
        ]
        lines.append({"step": 30, "eval/loss": 0.5, "eval/rewards/accuracies": 0.71})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_text(project / f"train/{name}/metrics.jsonl", text + '{"step": 31, "lo')


def _evaluate(project: Path) -> None:
    write_json(
        project / "evaluate/manifest.json", manifest("evaluate", day=4, inputs={"train.policy": "key-train.policy"})
    )
    write_json(project / "evaluate/results.json", RESULTS)


WRITERS: dict[str, Callable[[Path], None]] = {
    "import": _import, "judge": _judge, "audit": _audit, "curate": _curate, "train": _train, "evaluate": _evaluate,
}  # fmt: skip
ALL = tuple(WRITERS)


class Page(HTMLParser):
    """The page as a browser sees it: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.text = re.sub(r"\s+", " ", self.text.replace("\u00a0", " "))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(project: Path, *, figures: bool = False) -> Page:
    return Page(build(project, title="A run", figures=figures).read_text(encoding="utf-8"))


def test_a_whole_run_is_told_with_values_counts_and_intervals(folder: Folder) -> None:
    said = page(folder(*ALL)).text
    assert "4 February 2026" in said
    assert (
        "The policy's answer is better than the SFT model's on 82 % of 400 test prompts (95 % interval 78 to 85 %), "
        "by the world's truth; 66 ties count half." in said
    )
    assert "At equal length it is 77 % (72 to 82 %), by rule:world." in said
    assert "agrees with the world's truth in 84 % of 300 judgments (95 % interval 80 to 88 %)" in said
    assert "leans to the answer shown first by 20.0 points (95 % interval 19.0 to 21.0 points)" in said
    assert "20 points were planted in this judge." in said
    assert "choosing the shorter answer gets 56 % (52 to 60 %)" in said
    assert "cost $1.50" in said


def test_a_row_left_behind_has_its_reason(folder: Folder) -> None:
    said = page(folder(*ALL)).text
    for reason in (
        "1 missing chosen, first at votes.jsonl:121",
        "2 identical texts, never asked",
        "10 tie",
        "4 ties kept",
    ):
        assert reason in said


def test_lists_of_steps_are_told_apart_and_counted_in_their_units(folder: Folder) -> None:
    project = folder(*ALL)
    rows: list[tuple[str, str, int, int, dict[str, Any]]] = [
        ("pairs: soft_label", "items", 9, 8, {"dropped": {"no readable verdict": 1}}),
        ("pairs: flip", "pairs", 8, 8, {"changed": {"sides exchanged": 1}, "unit_out": "pairs"}),
        ("kto: ranked_list", "items", 9, 3, {}),
        ("kto: best_against_rest", "lists", 3, 7, {"dropped": {"equal grades": 1}}),
        ("kto: unpair", "pairs", 7, 14, {"unit_out": "answers"}),
    ]
    told = [dict(zip(("step", "unit", "rows_in", "rows_out"), row, strict=False)) | row[-1] for row in rows]
    write_json(project / "curate/funnel.json", told)
    write_json(project / "curate/manifest.json", manifest("curate", counts={"pairs: ties kept": 1}))
    said = page(project).text
    for line in (
        "pairs: soft_label 8 pairs 1 1 no readable verdict", "pairs: flip 8 pairs – sides exchanged in 1 pair 1 tie",
        "kto: ranked_list 3 lists – kto:", "kto: best_against_rest 7 pairs 1 1 equal grades", "kto: unpair 14 answers",
    ):  # fmt: skip
        assert line in said


@pytest.mark.parametrize("missing", ALL)
def test_any_section_may_be_missing(folder: Folder, missing: str) -> None:
    shown = page(folder(*(name for name in ALL if name != missing)), figures=True)
    assert "A run" in shown.text
    assert shown.having("main")


@pytest.mark.parametrize("sections", [(), ("import",), ("import", "audit", "curate"), ("evaluate",)])
def test_a_small_run_has_a_page(folder: Folder, sections: tuple[str, ...]) -> None:
    shown = page(folder(*sections), figures=True)
    targets = {attributes.get("id") for _, attributes in shown.tags}
    for link in shown.having("nav") and shown.having("a")[1:]:
        assert (link["href"] or "").removeprefix("#") in targets


def test_files_cut_short_count_as_missing(folder: Folder) -> None:
    project = folder(*ALL)
    for name in ("evaluate/results.json", "audit/findings.json", "curate/funnel.json", "judge/manifest.json"):
        (project / name).write_text('{"a": [', encoding="utf-8")
    assert "Training" in page(project, figures=True).text


def test_values_that_could_not_be_measured_are_left_out(folder: Folder) -> None:
    project = folder(*ALL)
    results = json.loads(json.dumps(RESULTS))
    nothing = estimate(float("nan"), float("nan"), float("nan"), 0)
    results["win_rates"][0] |= {"rate": nothing, "true": None, "length_controlled": None, "consistency": None}
    results["reward"] |= {
        "held_out": nothing,
        "length_baseline": nothing,
        "truth": None,
        "margins": [],
        "calibration": {},
    }
    results["judge"]["both_orders"] = nothing
    write_json(project / "evaluate/results.json", results)
    assert "nan" not in page(project, figures=True).text.lower()


def test_a_section_that_left_the_recipe_is_not_shown(folder: Folder) -> None:
    project = folder(*ALL)
    recipe = json.loads((project / "recipe.json").read_text())
    del recipe["evaluate"], recipe["train"]["reward"]
    write_json(project / "recipe.json", recipe)
    said = page(project).text
    assert "82 %" not in said
    assert "Reward model" not in said


def test_a_stage_made_from_an_earlier_input_says_so(folder: Folder) -> None:
    project = folder(*ALL)
    assert "made from an earlier" not in page(project).text
    write_json(project / "train/policy/manifest.json", manifest("train.policy", key="another"))
    assert "evaluate was made from an earlier train.policy" in page(project).text


def test_nothing_a_user_wrote_becomes_markup(folder: Folder) -> None:
    shown = page(folder(*ALL), figures=True)
    assert not shown.having("script")
    assert not shown.having("img")
    assert not shown.having("b")
    assert "<script>alert('prompt')</script> & go" in shown.text
    assert "<img src=x onerror=alert(1)>" in shown.text


def test_the_title_is_escaped(folder: Folder) -> None:
    path = build(folder("import"), title="<script>1</script>", figures=False)
    assert "<script" not in path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_elsewhere(folder: Folder) -> None:
    text = build(folder(*ALL), title="A run").read_text(encoding="utf-8")
    for tag, attributes in Page(text).tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_same_run_gives_the_same_bytes(folder: Folder) -> None:
    project = folder(*ALL)
    first = build(project, title="A run").read_bytes()
    assert build(project, title="A run").read_bytes() == first
    assert not list(project.glob(".*partial"))


def test_every_figure_says_what_it_shows(folder: Folder) -> None:
    pytest.importorskip("matplotlib")
    shown = page(folder(*ALL), figures=True)
    drawn = [attributes for attributes in shown.having("div") if attributes.get("role") == "img"]
    assert len(shown.having("svg")) == len(drawn) > 10
    assert all(attributes["aria-label"] for attributes in drawn)
    assert "Policy against SFT: 81.5" in str(drawn[0]["aria-label"]).replace("\u00a0", " ")


def test_ids_are_unique(folder: Folder) -> None:
    ids = [str(attributes["id"]) for _, attributes in page(folder(*ALL), figures=True).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_drawing_leaves_the_settings_of_matplotlib_alone(folder: Folder) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    build(folder(*ALL), title="A run")
    assert dict(matplotlib.rcParams) == before


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make matplotlib look not installed."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_tables_stay(folder: Folder) -> None:
    shown = page(folder(*ALL), figures=True)
    assert "pip install 'tiebreak[report]'" in shown.text
    assert not shown.having("svg")
    assert shown.having("table")
    assert "82 %" in shown.text


def test_figures_that_nobody_wants_are_not_asked_for(folder: Folder) -> None:
    shown = page(folder(*ALL), figures=False)
    assert not shown.having("svg")
    assert "pip install" not in shown.text


def test_a_folder_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        build(tmp_path / "nowhere", title="A run")


def test_the_page_is_built_without_torch(folder: Folder) -> None:
    code = (
        "import sys; from pathlib import Path; from tiebreak.report.build import build; "
        f"build(Path({str(folder(*ALL))!r}), title='A run'); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}; apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 390, 820, 1280])
def test_the_page_fits_the_screen(folder: Folder, browser: Any, width: int) -> None:
    path = build(folder(*ALL), title="A title withoneverylongwordthatnoscreenofatelephonecanholdinoneline")
    seen: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 844})
    tab.on("console", lambda message: seen.append(message.text))
    tab.on("pageerror", lambda error: seen.append(str(error)))
    tab.on(
        "request", lambda request: seen.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    tab.goto(path.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shown = tab.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0).length"
    )
    assert shown > 0
    assert seen == []
