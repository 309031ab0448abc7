"""Pairs out in four shapes, plain and as turns, and back through the datasets library."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebreak.data.formats import FORMATS
from tiebreak.data.trl import SHAPES, export_pairs, hard_pairs, to_trl, write_rows
from tiebreak.records import InputError, Message, Pair, Prompt, Response

PROMPT = Prompt(text="Q: ")
GOOD, BAD, SAME = (
    Response(prompt_id=PROMPT.id, text=t, maker=m) for t, m in ((" yes", ""), ("no\n", ""), (" yes", "m"))
)
PROMPTS = {PROMPT.id: PROMPT}
RESPONSES = {response.id: response for response in (GOOD, BAD, SAME)}


def pair(chosen: Response = GOOD, rejected: Response = BAD, **values: object) -> Pair:
    return Pair(prompt_id=PROMPT.id, chosen_id=chosen.id, rejected_id=rejected.id, **values)


EXPECTED = {
    "preference": [{"prompt": "Q: ", "chosen": " yes", "rejected": "no\n"}],
    "preference_implicit": [{"chosen": "Q:  yes", "rejected": "Q: no\n"}],
    "unpaired": [
        {"prompt": "Q: ", "completion": " yes", "label": True},
        {"prompt": "Q: ", "completion": "no\n", "label": False},
    ],
    "prompt_completion": [{"prompt": "Q: ", "completion": " yes"}],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_keeps_every_byte_b10(shape):
    rows = list(to_trl([pair(p=0.8)], PROMPTS, RESPONSES, shape=shape))
    assert rows == [row | {"p": 0.8} for row in EXPECTED[shape]]


def test_a_plain_prompt_becomes_one_user_turn():
    (row,) = to_trl([pair()], PROMPTS, RESPONSES, conversational=True)
    assert row["prompt"] == [{"role": "user", "content": "Q: "}]
    assert row["chosen"] == [{"role": "assistant", "content": " yes"}]
    (implicit,) = to_trl([pair()], PROMPTS, RESPONSES, shape="preference_implicit", conversational=True)
    assert implicit["chosen"] == row["prompt"] + row["chosen"]


def test_ties_and_equal_texts_never_become_a_hard_pair():
    pairs = [pair(p=0.5), pair(rejected=SAME), pair()]
    assert hard_pairs(pairs, RESPONSES) == ([pairs[2]], 1, 1)
    assert len(list(to_trl(pairs, PROMPTS, RESPONSES))) == 1


def test_a_margin_column_appears_with_the_first_margin():
    rows = list(to_trl([pair(margin=0.25), pair(p=0.9)], PROMPTS, RESPONSES))
    assert [row["margin"] for row in rows] == [0.25, None]
    assert "margin" not in next(to_trl([pair()], PROMPTS, RESPONSES))


def test_a_context_stands_before_the_last_user_turn():
    turns = (Message("system", "s"), Message("user", "u"))
    for text, said in (("plain", "ctx\n\nplain"), (turns, "ctx\n\nu")):
        prompt = Prompt(text=text, context="ctx")
        one, two = (Response(prompt_id=prompt.id, text=t) for t in "ab")
        row = next(
            to_trl(
                [Pair(prompt_id=prompt.id, chosen_id=one.id, rejected_id=two.id)],
                {prompt.id: prompt},
                {one.id: one, two.id: two},
                conversational=True,
            )
        )
        assert row["prompt"][-1] == {"role": "user", "content": said}


def test_what_cannot_be_exported_is_told(tmp_path):
    talk = Prompt(text=[("user", "u")])
    one, two = (Response(prompt_id=talk.id, text=t) for t in "ab")
    spoken = Pair(prompt_id=talk.id, chosen_id=one.id, rejected_id=two.id)
    with pytest.raises(InputError, match="conversational=true"):
        list(to_trl([spoken], {talk.id: talk}, {one.id: one, two.id: two}))
    with pytest.raises(InputError, match=r"no shape 'unpared'.*Did you mean 'unpaired'"):
        list(to_trl([pair()], PROMPTS, RESPONSES, shape="unpared"))
    with pytest.raises(InputError, match="belongs to the prompt"):
        list(to_trl([pair()], {}, RESPONSES))
    with pytest.raises(InputError, match="names the response"):
        list(to_trl([pair()], PROMPTS, {}))
    with pytest.raises(InputError, match="no pair to export: 1 ties and 1 pairs of equal texts"):
        export_pairs([pair(p=0.5), pair(rejected=SAME)], PROMPTS, RESPONSES, tmp_path / "x.jsonl")
    with pytest.raises(InputError, match=r"expected \.jsonl or \.parquet"):
        export_pairs([pair()], PROMPTS, RESPONSES, tmp_path / "x.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("old\n")

    def rows():
        yield {"a": 1}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_rows(rows(), path)
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_export_reads_back_as_an_import(tmp_path):
    done = export_pairs([pair(p=0.75, margin=0.5)], PROMPTS, RESPONSES, tmp_path / "new" / "x.jsonl")
    assert done == (1, 1, 0, 0)
    (entry,) = FORMATS["preferences"].load()(tmp_path / "new" / "x.jsonl")
    assert entry.prompt.text == PROMPT.text
    assert [r.text for r in entry.responses] == [GOOD.text, BAD.text]
    assert (entry.judgments[0].probability, entry.judgments[0].strength) == (0.75, 0.5)


readable = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(readable, readable, readable)
def test_any_text_survives_export_and_import_b10(tmp_path_factory, head, good, bad):
    prompt = Prompt(text=head)
    sides = [Response(prompt_id=prompt.id, text=good), Response(prompt_id=prompt.id, text=bad + good)]
    pairs = [Pair(prompt_id=prompt.id, chosen_id=sides[0].id, rejected_id=sides[1].id)]
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    export_pairs(pairs, {prompt.id: prompt}, {side.id: side for side in sides}, path)
    (entry,) = FORMATS["preferences"].load()(path)
    assert (entry.prompt.text, *(r.text for r in entry.responses)) == (head, good, bad + good)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("conversational", [False, True], ids=["plain", "turns"])
@pytest.mark.parametrize("shape", SHAPES)
def test_datasets_reads_what_was_written(tmp_path, monkeypatch, shape, conversational, ending):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    pairs = [pair(margin=0.5), pair(p=0.75)]
    path = tmp_path / f"x.{ending}"
    export_pairs(pairs, PROMPTS, RESPONSES, path, shape=shape, conversational=conversational)
    kind = "json" if ending == "jsonl" else "parquet"
    found = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    expected = list(to_trl(pairs, PROMPTS, RESPONSES, shape=shape, conversational=conversational))
    assert json.loads(json.dumps(found.to_list())) == expected


def test_pairs_whose_sides_answer_different_prompts_are_refused(tmp_path):
    other = Prompt(text="R: ")
    with pytest.raises(InputError, match="answer different prompts"):
        export_pairs([pair(rejected_prompt_id=other.id)], PROMPTS, RESPONSES, tmp_path / "rows.jsonl")
    assert list(tmp_path.iterdir()) == []
