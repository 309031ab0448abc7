"""A recipe is read, overridden and checked before anything loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tiebreak.recipe import Recipe, build_recipe, load_recipe, override, read_yaml, resolved, sections
from tiebreak.records import InputError

MODELS = [kind for kind in vars(sections).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


def build(*settings: str, **raw: Any) -> Recipe:
    return build_recipe(raw, settings, where="")


def mistake(*settings: str, **raw: Any) -> str:
    with pytest.raises(InputError) as caught:
        build(*settings, **raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_reads_and_reads_back_the_same(path: Path) -> None:
    recipe = load_recipe(path)
    again = build_recipe(resolved(recipe), where="")
    assert again == recipe
    assert list(again.train) == list(read_yaml(path).get("train", {}))


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("seed: 3\nsample: {model: m, n: 4}\n")
    recipe = load_recipe(path, ["sample.n=8", "judge.by=rule"])
    assert recipe.sample is not None
    assert recipe.judge is not None
    assert (recipe.seed, recipe.sample.n, recipe.sample.top_p, recipe.judge.by) == (3, 8, 1.0, "rule")


def test_an_override_leaves_what_it_was_given_as_it_was() -> None:
    raw = {"judge": {"by": "rule"}}
    assert override(raw, ["judge.noise=1"]) == {"judge": {"by": "rule", "noise": 1}}
    assert raw == {"judge": {"by": "rule"}}


def test_the_order_of_a_file_is_kept() -> None:
    raw = {"train": {"z": {"method": "sft", "model": "m"}, "a": {"method": "sft", "model": "m"}}}
    assert list(override(raw, ["seed=1"])["train"]) == ["z", "a"]


def test_another_judge_takes_the_knobs_of_the_one_before_along() -> None:
    raw = {"judge": {"by": "rule", "rule": "overlap", "sharpness": 10, "orders": "given"}}
    made = override(raw, ["judge.model=m", "judge.by=pairwise", "judge.seed=1"])
    assert made == {"judge": {"by": "pairwise", "orders": "given", "model": "m", "seed": 1}}
    assert override(raw, ["judge.by=rule"]) == raw
    assert override({"import": {"format": "preferences", "by": "a", "n": 1}}, ["import.by=b"])["import"]["n"] == 1


def test_the_command_at_the_head_of_the_tldr_recipe_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_URL", "http://127.0.0.1:9/v1")
    path = next(path for path in SHIPPED if path.name == "tldr.yaml")
    given = re.findall(r"([\w.]+=\S+)", path.read_text().partition("project:")[0].replace("'", ""))
    recipe = load_recipe(path, given)
    assert recipe.judge is not None
    assert (recipe.judge.by, recipe.judge.knobs["rubric"]) == ("pairwise", "tldr")


@pytest.mark.parametrize("word", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".1e-3"])
def test_a_small_number_is_a_number_however_it_is_written(word: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"judge: {{by: rule, rule: world, noise: {word}}}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    other = build(f"judge.noise={word}", judge={"by": "rule", "rule": "world"})
    assert recipe.judge is not None
    assert other.judge is not None
    assert recipe.judge.knobs["noise"] == other.judge.knobs["noise"] == 1e-4


@pytest.mark.parametrize("word", ["inf", ".inf"])
def test_infinity_survives_strict_json(word: str) -> None:
    recipe = build(f"judge.sharpness={word}", judge={"by": "rule", "rule": "world"})
    assert recipe.judge is not None
    assert recipe.judge.knobs["sharpness"] == float("inf")
    assert resolved(recipe)["judge"]["sharpness"] == "inf"
    assert build_recipe(resolved(recipe), where="") == recipe


def test_the_environment_reaches_no_resolved_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_URL", "http://user:hunter2@host/v1")
    recipe = build("judge.endpoint=${SECRET_URL}", judge={"by": "pairwise", "model": "m"}, ledger="${SECRET_URL}")
    assert "hunter2" not in str(resolved(recipe))
    assert resolved(recipe)["judge"]["endpoint"] == "${SECRET_URL}"


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    said = mistake(judge={"by": "pairwise", "model": "m", "endpoint": "${NOT_SET}"})
    assert said == "judge.endpoint needs the environment variable NOT_SET, which is not set; export it first."


SFT = {"method": "sft", "model": "m"}


@pytest.mark.parametrize(
    ("raw", "settings", "said"),
    [
        ({"projct": "x"}, [], "no key 'projct'. Did you mean 'project'?"),
        ({}, ["trian.sft.epochs=2"], "no key 'trian'. Did you mean 'train'?"),
        ({"evaluate": {"win_rat": {}}}, [], "no key 'evaluate.win_rat'. Did you mean 'win_rate'?"),
        ({"evaluate": {"win_rate": {"agianst": []}}}, [], "'evaluate.win_rate.agianst'. Did you mean 'against'?"),
        ({"import": {"frmat": "world"}}, [], "import has no key 'frmat'"),
        ({"import": {"format": "wrld"}}, [], "Did you mean 'world'?"),
        ({"judge": {"by": "rule", "sharpnes": 1}}, [], "Did you mean 'sharpness'?"),
        ({"judge": {"by": "rule", "ordrs": "both"}}, [], "Did you mean 'orders'?"),
        ({"judge": {"by": "rule", "rule": "wrld"}}, [], "no rule called 'wrld'"),
        ({"judge": {"by": "rule", "rule": "world", "noise": "much"}}, [], "judge.noise is 'much'; expected a number"),
        ({"judge": {"by": "rule", "orders": "bth"}}, [], "expected 'both', 'random' or 'given'; did you mean 'both'"),
        ({"judge": {"by": "rule", "again": ["invlid"]}}, [], "did you mean 'invalid'"),
        ({"judge": {"orders": "both"}}, [], "'judge.by' is missing"),
        ({"curate": ["sof_label"]}, [], "Did you mean 'soft_label'?"),
        ({"curate": [{"soft_label": {"averge": 1}}]}, [], "Did you mean 'average'?"),
        ({"curate": {"soft_label": {}}}, [], "curate is {'soft_label': {}}; expected a list"),
        ({"curate": "soft_label"}, [], "curate is 'soft_label'; expected a list of steps, such as [soft_label]."),
        ({"curate": {}}, [], "curate has no steps; write a list such as [soft_label, drop: ties]. It begins with"),
        ({"curate": []}, [], "curate has no steps"),
        ({"curate": {"a": ["soft_label"], "b": []}}, [], "curate.b has no steps"),
        ({"curate": {"a": ["plurality"], "b": ["soft_labl"]}}, [], "curate.b: There is no curate step"),
        ({"curate": {"a": ["plurality"], "b": ["drop"]}}, [], "curate.b: The curate step 'drop' has no pairs yet"),
        ({"curate": {"a": ["plurality"], "b": [{"plurality": {"x": 1}}]}}, [], "curate.b: 'plurality' has no knob 'x'"),
        (
            {"curate": ["soft_label", "plurality"]},
            [],
            "'plurality' derives rows from judgments, so it has to be",
        ),
        ({"curate": ["ranked_list", {"first": "x"}]}, [], "first has n = 'x'; expected a whole number of at least 1."),
        ({"curate": ["soft_label", {"unpair": "no"}]}, [], "curate: unpair has soft = 'no'; expected true or false."),
        ({"curate": [{"by_user": "median"}]}, [], "'median'; expected probability or logit"),
        ({"curate": ["soft_label", {"drop": ["ties", "same_tex"]}]}, [], "same_text. Did you mean 'same_text'?"),
        ({"curate": [{"nowhere:step": 2}]}, [], "The curate step 'nowhere:step' cannot be loaded: there is no module"),
        ({"train": [1]}, [], "train is [1]; expected keys with values"),
        ({"train": {"sft": {**SFT, "epohs": 2}}}, [], "Did you mean 'epochs'?"),
        ({"train": {"sft": {**SFT, "method": "sfft"}}}, [], "Did you mean 'sft'?"),
        ({"train": {"sft": SFT}}, ["train.stf.epochs=2"], "train.stf has no method; give it one. Did you mean 'sft'?"),
        ({"train": {"../x": SFT}}, [], "expected letters, digits"),
        ({"train": {"reference": SFT}}, [], "'reference' means the prompts' own answers"),
        ({"train": {"sft": SFT}}, ["train.sft.epochs=.inf"], "expected a finite number"),
        ({"train": {"sft": SFT}}, ["train.sft.batch=-1"], "train.sft.batch is -1; expected 1 or more"),
        ({"train": {"sft": SFT}}, ["train.sft.held_out=1"], "expected less than 1"),
        ({"train": {"sft": SFT}}, ["train.sft.model=[1]"], "train.sft.model is [1]"),
        ({"train": {"sft": SFT}}, ["train.sft.epochs.x=1"], None),
        ({"sample": {"model": "m", "limit": 0}}, [], "sample.limit is 0; expected 1 or more"),
        ({}, ["seed=abc"], "seed is 'abc'; expected a whole number"),
        ({}, ["seed"], "'seed' is not an override"),
        ({}, ["=3"], "is not an override"),
        ({}, ["a..b=3"], "is not an override"),
        ({"seed": 1}, ["seed.x=1"], "seed is 1, not a section"),
        ({}, ["seed=[1"], "is not YAML"),
        ({"project": ".."}, [], "expected a name"),
        ({}, ["project="], "project is empty; expected text"),
        ({"export": {"path": "../x.jsonl"}}, [], "expected a file name without folders"),
        ({"export": {"path": "x.csv"}}, [], "ends in .jsonl or .parquet"),
        ({"audit": {"checks": ["positon"]}}, [], "There is no"),
        ({"evaluate": {"truth": "wrld"}}, [], "no rule called 'wrld'"),
        ({"import": {"split": {"test": [1]}}}, [], "import.split.test is [1]"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_where(raw: dict[str, Any], settings: list[str], said: str | None) -> None:
    if said is not None:
        assert said in mistake(*settings, **raw)
    else:
        assert mistake(*settings, **raw)


@pytest.mark.parametrize(
    "steps",
    [
        [{"soft_label": {"by": "human:*"}}, {"strength": {"of": "helpful", "by": ["model:*"]}}, {"flip": "negative"}],
        [{"score_pairs": {"of": {"helpful": 0.5, "honest": -1}}}, {"agrees": {"by": "model:*"}}, {"flip": [0, 2]}],
        [{"attributes": ["helpful", "honest"]}, {"process": "first_error"}],
        [{"model_contrast": {"chosen": "a@1", "rejected": "b@1"}}, "ranked_list", "all_pairs", {"band": [0, 7]}],
        [{"structured_mismatch": {"fields": ["state"], "teacher": "a@1"}}],
    ],
)
def test_what_only_judgments_can_tell_waits_for_them(steps: list[Any]) -> None:
    assert build(curate=steps).curate == steps


PAIRS = {"method": "dpo", "model": "m"}
ONE = {"answers": ["soft_label", "unpair"]}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"train": {"x": PAIRS}}, "train.x.curated is 'pairs', and curate has answers."),
        ({"train": {"x": {**PAIRS, "curated": "answer"}}}, "'answer', and curate has answers. Did you mean 'answers'?"),
        ({"train": {"x": {**SFT, "rows": "chosen"}}}, "train.x.curated is 'pairs', and curate has answers."),
        ({"train": {"x": {**SFT, "curated": "no"}}}, "train.x.curated is 'no', and curate has answers."),
        ({"export": {}}, "export.curated is 'pairs', and curate has answers."),
        ({"evaluate": {"reward": "m"}}, "evaluate.reward tests on the list pairs, and curate has answers; call one"),
        ({"train": {"x": {**PAIRS, "curated": "answers"}}}, ""),
        ({"train": {"x": SFT}}, ""),
        ({"train": {"x": {"method": "ppo", "model": "m", "reward": {"length": {"most": 9}}}}}, ""),
    ],
)
def test_rows_that_no_list_makes_are_missed_at_the_door(raw: dict[str, Any], said: str) -> None:
    if said:
        assert said in mistake(curate=ONE, **raw)
    else:
        assert build(curate=ONE, **raw).curate == ONE
    assert build(**raw, curate={**ONE, "pairs": ["soft_label"], "answer": ["plurality"], "no": ["plurality"]}).curate


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- a\n- b\n", "holds a list; expected sections"),
        (b"hello\n", "holds a str; expected sections"),
        (b"", "is empty; expected sections"),
        (b"\xff\xfe\x00\x01" * 99, "is not a text file"),
        (b"\x00\x01\x02", "is not YAML"),
        (b"a: [1\n", "is not YAML"),
        (b"seed: 1\nseed: 2\n", "the key 'seed' is written twice"),
        (b"? [a]\n: 1\n", "is not YAML"),
        (b"seed: !!python/object/apply:os.system [exit]\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_offers_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("seed: 1")
    with pytest.raises(InputError, match=r"Did you mean 'tiny\.yaml'\?"):
        load_recipe(tmp_path / "tinny.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("soft_labl", "Did you mean the curate step 'soft_label'?"),
        ("soft_labl.yml", "pass the path of a YAML file."),
        ("x/soft_labl", "pass the path of a YAML file."),
        ("tiny", "Did you mean 'tiny.yaml'?"),
    ],
)
def test_a_bare_word_may_have_meant_a_curate_step(
    word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text("seed: 1")
    with pytest.raises(InputError) as caught:
        load_recipe(word)
    assert str(caught.value).endswith(said)


def test_a_project_is_a_name_or_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert build(project="x").folder == Path("runs/x")
    assert build(project="./x").folder == Path("x")
    assert build(project="~/x").folder == Path("/home/ann/x")
    assert build("project=2024").folder == Path("runs/2024")


@pytest.mark.parametrize("model", [m for m in MODELS if m is not Recipe], ids=lambda model: model.__name__)
def test_every_key_says_what_it_means(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []
