"""Each format on a small file of its own, and what each refuses."""

from __future__ import annotations

import gzip
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiebreak.data.formats import FORMATS
from tiebreak.data.table import Entry, Refused
from tiebreak.data.trl import write_rows
from tiebreak.records import InputError, Message


def write(path: Path, rows: object) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(name: str, path: Path, **knobs: object) -> list[Entry | Refused]:
    return list(FORMATS[name].load()(path, **knobs))


def read_one(name: str, path: Path, **knobs: object) -> Entry:
    (entry,) = read(name, path, **knobs)
    assert isinstance(entry, Entry), entry
    return entry


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_the_knobs_of_a_row_are_those_of_its_reader(row):
    parameters = list(inspect.signature(row.load()).parameters.values())
    assert parameters[0].name == "path"
    assert {p.name: p.default for p in parameters[1:]} == dict(row.knobs)


def test_preferences_keeps_the_trailing_space_of_a_prompt_b10(tmp_path):
    path = write(tmp_path / "a.json", [{"prompt": "Explain gravity: ", "chosen": " Mass.", "rejected": "No \n"}])
    entry = read_one("preferences", path)
    assert entry.prompt.text == "Explain gravity: "
    assert [r.text for r in entry.responses] == [" Mass.", "No \n"]


def test_preferences_says_that_the_order_shown_is_unknown(tmp_path):
    entry = read_one("preferences", write(tmp_path / "mine.json", [{"prompt": "p", "chosen": "a", "rejected": "b"}]))
    (judgment,) = entry.judgments
    assert not judgment.order_known
    assert judgment.slots == tuple(r.id for r in entry.responses)
    assert judgment.winner == 0
    assert judgment.by == "human:mine"


def test_metadata_null_and_both_names_of_quality_b11(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "metadata": None},
        {"prompt": "p", "chosen": "a", "rejected": "c", "metadata": {"quality": "x_vs_y", "category": "safety"}},
        {"prompt": "p", "chosen": "a", "rejected": "d", "metadata": {"quality_type": "x_vs_y", "chosen_length": 9}},
    ]
    fields = [entry.judgments[0].fields for entry in read("preferences", write(tmp_path / "b.json", rows))]
    assert fields[0] == {"metadata": None}
    assert fields[1] == {"metadata": rows[1]["metadata"], "quality": "x_vs_y", "category": "safety"}
    assert fields[2] == {"metadata": rows[2]["metadata"], "quality": "x_vs_y"}


def test_unknown_columns_soft_label_and_margin_are_kept(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "p": 0.75, "margin": 0.5, "score_chosen": 8, "x": [1]}
    (judgment,) = read_one("preferences", write(tmp_path / "a.jsonl", [row])).judgments
    assert judgment.probability == 0.75
    assert judgment.strength == 0.5
    assert judgment.fields == {"p": 0.75, "margin": 0.5, "score_chosen": 8, "x": [1]}


def test_a_margin_beyond_one_is_a_field_and_no_strength(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 3.0}
    (judgment,) = read_one("preferences", write(tmp_path / "a.jsonl", [row])).judgments
    assert judgment.strength is None
    assert judgment.fields["margin"] == 3.0


def test_a_soft_label_of_one_half_is_a_tie_and_one_below_is_refused(tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "soft_label_chosen": p} for p in (0.5, 0.4, 1.4)]
    tie, below, outside = read("preferences", write(tmp_path / "a.jsonl", rows))
    assert tie.judgments[0].verdict == "tie"
    assert below.reason == "soft_label_chosen is below 1/2, so it contradicts the chosen side"
    assert outside.reason == "soft_label_chosen lies outside 0 to 1"


TURNS = [{"role": "user", "content": "Hi"}]
GOOD, BAD = {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "What?"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS, "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [*TURNS, GOOD], "rejected": [*TURNS, BAD]},
        {"prompt": TURNS, "chosen": [*TURNS, GOOD], "rejected": [*TURNS, BAD]},
        {"prompt": "Hi", "chosen": [*TURNS, GOOD], "rejected": [*TURNS, BAD]},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "What?"},
        },
    ],
    ids=["explicit", "implicit", "prompt repeated", "prompt as text", "sharegpt"],
)
def test_turns_of_every_shape_give_the_same_records(tmp_path, row):
    entry = read_one("preferences", write(tmp_path / "a.jsonl", [row]))
    assert entry.prompt.text == (Message("user", "Hi"),)
    assert [r.text for r in entry.responses] == ["Hello!", "What?"]


def test_an_implicit_prompt_in_plain_text_is_the_shared_beginning(tmp_path):
    rows = [
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        {"chosen": "The sky is blue", "rejected": "The sky is blueish"},
        {"chosen": "Post.\nTL;DR: x TL;DR: it rained", "rejected": "Post.\nTL;DR: x TL;DR: it is dry"},
        {"chosen": "yes", "rejected": "no"},
    ]
    sky, word, post, nothing = read("preferences", write(tmp_path / "a.jsonl", rows))
    assert (sky.prompt.text, sky.responses[0].text) == ("The sky is", " blue.")
    assert (word.prompt.text, word.responses[1].text) == ("The sky is", " blueish")
    assert (post.prompt.text, post.responses[0].text) == ("Post.\nTL;DR: x TL;DR: it", " rained")
    assert nothing.reason == "prompts differ: the two sides share no beginning"


def test_split_at_takes_the_last_mark_so_a_post_may_contain_it_a9(tmp_path):
    rows = [{"chosen": "Post TL;DR: mine. TL;DR: it rained", "rejected": "Post TL;DR: mine. TL;DR: it is dry"}]
    entry = read_one("preferences", write(tmp_path / "a.jsonl", rows), split_at="TL;DR:")
    assert entry.prompt.text == "Post TL;DR: mine. TL;DR:"
    assert [r.text for r in entry.responses] == [" it rained", " it is dry"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": "a"}, "missing rejected"),
        ({"prompt": "p", "chosen": None, "rejected": "a"}, "missing chosen"),
        ({"prompt": "p", "chosen": "a", "rejected": [BAD]}, "one response is text and the other is turns"),
        ({"chosen": [*TURNS, GOOD], "rejected": [BAD, BAD]}, "prompts differ"),
        ({"prompt": TURNS, "chosen": [BAD, GOOD], "rejected": [BAD]}, "the turns before the answer differ from"),
        ({"prompt": TURNS, "chosen": TURNS, "rejected": [BAD]}, "the last turn of a response is from 'user'"),
        (["p", "a", "b"], "the row is a list, not an object with named columns"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_reason(tmp_path, row, reason):
    (refused,) = read("preferences", write(tmp_path / "a.jsonl", [row]))
    assert isinstance(refused, Refused)
    assert refused.reason.startswith(reason)
    assert refused.where == f"{tmp_path / 'a.jsonl'}:1"


def test_a_column_of_the_wrong_type_is_an_error_that_names_line_column_found_expected_and_cure(tmp_path):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "a.jsonl", [good, good | {"prompt": 3}])
    says = r"a\.jsonl:2: column 'prompt' holds 3 \(int\); expected text or a list of turns.*format=table"
    with pytest.raises(InputError, match=says):
        read("preferences", path)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"prompt": "p"}\n{"prompt": \n', r"a\.jsonl:2: broken JSON"),
        ("a.json", '[{"prompt": "p",]', r"a\.json:1: broken JSON"),
        ("a.json", '{"prompt": "p"}', r"holds one dict; expected a JSON array"),
        ("a.txt", "x", r"no ending that tells its kind; expected \.json"),
        ("a.jsonl.gz", "not gzip", r"cannot be unpacked"),
    ],
)
def test_a_broken_file_is_an_error_with_its_place(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read("preferences", tmp_path / name)


def test_text_that_is_not_utf8_and_a_missing_file(tmp_path):
    (tmp_path / "votes.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(InputError, match="not UTF-8"):
        read("preferences", tmp_path / "votes.jsonl")
    with pytest.raises(InputError, match=r"does not exist.*Did you mean 'votes.jsonl'"):
        read("preferences", tmp_path / "vote.jsonl")


def test_parquet_and_gzip_read_like_jsonl(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"prompt": "p ", "chosen": " a", "rejected": "b\r\n"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    with gzip.open(tmp_path / "x.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(json.dumps(rows[0]))
    plain = read_one("preferences", write(tmp_path / "x.jsonl", rows))
    for name in ("x.parquet", "x.jsonl.gz"):
        entry = read_one("preferences", tmp_path / name)
        assert entry._replace(where="") == plain._replace(where="")


def test_a_transcript_splits_at_the_last_assistant_turn(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    path = write(tmp_path / "hh.jsonl", [{"chosen": start + " Because.", "rejected": start + " No idea."}])
    plain, turns = read_one("hh", path), read_one("hh", path, conversational=True)
    assert plain.prompt.text == start
    assert [r.text for r in plain.responses] == [" Because.", " No idea."]
    assert turns.prompt.text == (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
    assert [r.text for r in turns.responses] == ["Because.", "No idea."]


def test_transcripts_with_other_prompts_are_refused(tmp_path):
    rows = [
        {"chosen": "\n\nHuman: A\n\nAssistant: x", "rejected": "\n\nHuman: B\n\nAssistant: y"},
        {"chosen": "no dialogue", "rejected": "no dialogue"},
    ]
    assert [r.reason for r in read("hh", write(tmp_path / "hh.jsonl", rows))] == ["prompts differ", "no assistant turn"]


def comparison(**changes: object) -> dict[str, object]:
    return {
        "info": {"id": "t3_1", "post": "It rained. TL;DR: wet. More.", "title": "Rain", "subreddit": "advice"},
        "summaries": [
            {"text": " Rain.", "policy": "ref", "note": None},
            {"text": " Sun.", "policy": "sup1", "note": "?"},
        ],
        "choice": 0,
        "worker": "w1",
        "batch": "batch3",
        "split": "valid2",
        "extra": {"confidence": 2},
    } | changes


def test_a_comparison_keeps_what_is_known_about_it(tmp_path):
    entry = read_one("tldr_comparisons", write(tmp_path / "b.jsonl", [comparison()]))
    (judgment,) = entry.judgments
    assert entry.prompt.text == "SUBREDDIT: r/advice\n\nTITLE: Rain\n\nPOST: It rained. TL;DR: wet. More.\n\nTL;DR:"
    assert [r.text for r in entry.responses] == [" Rain.", " Sun."]
    assert [r.maker for r in entry.responses] == ["human:reference", "sup1"]
    assert (judgment.by, judgment.winner, judgment.strength, judgment.order_known) == ("human:w1", 0, 0.75, False)
    expected = {"worker": "w1", "batch": "batch3", "split": "valid2", "confidence": 2.0}
    assert expected.items() <= judgment.fields.items()
    assert judgment.fields["notes"] == [None, "?"]


def test_a_news_article_has_its_own_query(tmp_path):
    info = {"id": "1", "site": "cnn", "title": "t", "article": "Long."}
    entry = read_one("tldr_comparisons", write(tmp_path / "b.jsonl", [comparison(info=info)]), order="shown")
    assert entry.prompt.text == "Article:\nLong.\n\nTL;DR:\n"
    assert entry.judgments[0].order_known


def test_the_confidence_filter_keeps_both_choices_a1(tmp_path):
    rows = [comparison(choice=int(c > 5), extra={"confidence": c}, worker=f"w{c}") for c in range(1, 10)]
    entries = read("tldr_comparisons", write(tmp_path / "b.jsonl", rows), min_strength=0.75)
    kept = [entry.judgments[0] for entry in entries if isinstance(entry, Entry)]
    assert [j.fields["confidence"] for j in kept] == [1, 2, 8, 9]
    assert [j.winner for j in kept] == [0, 0, 1, 1]
    assert {e.reason for e in entries if isinstance(e, Refused)} == {"weaker than min_strength 0.75"}


def test_a_null_confidence_is_no_crash_and_no_guess_a16(tmp_path):
    path = write(tmp_path / "b.jsonl", [comparison(extra={"confidence": None}), comparison(extra=None)])
    assert [entry.judgments[0].strength for entry in read("tldr_comparisons", path)] == [None, None]
    assert [e.reason for e in read("tldr_comparisons", path, min_strength=0.1)] == [
        "no confidence, and min_strength asks for one"
    ] * 2


def test_a_confidence_against_the_choice_is_noted(tmp_path):
    entry = read_one("tldr_comparisons", write(tmp_path / "b.jsonl", [comparison(choice=1)]))
    assert entry.notes == ("confidence points to the other choice",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"choice": None}, "missing choice"),
        ({"choice": 2}, "choice is neither 0 nor 1"),
        ({"extra": {"confidence": 0}}, "confidence lies outside 1 to 9"),
        ({"info": {"id": "x"}}, "missing post or article"),
        ({"info": None}, "missing info"),
        ({"summaries": None}, "missing summaries"),
    ],
)
def test_a_comparison_without_a_readable_part_is_refused(tmp_path, changes, reason):
    (refused,) = read("tldr_comparisons", write(tmp_path / "b.jsonl", [comparison(**changes)]))
    assert refused.reason == reason


def test_wrong_knobs_of_comparisons_are_told(tmp_path):
    path = write(tmp_path / "b.jsonl", [comparison()])
    with pytest.raises(InputError, match="order is 'as shown'"):
        read("tldr_comparisons", path, order="as shown")
    with pytest.raises(InputError, match="min_strength is 8"):
        read("tldr_comparisons", path, min_strength=8)


def test_judged_summaries_put_the_reference_first_where_order_is_one(tmp_path):
    row = {
        "id": 1,
        "post": "p TL;DR:",
        "model_summary": " m",
        "reference_summary": " r",
        "judge_explanation": "Summary A",
    }
    rows = [
        row | {"judge_preferred": "ours", "order": 0},
        row | {"judge_preferred": "reference", "order": 1},
        row | {"judge_preferred": "ours", "order": 1, "judge_explanation": " "},
        row | {"judge_preferred": None, "order": None},
        row | {"judge_preferred": "both", "order": 1},
    ]
    first, second, drawn, unjudged, odd = read("judged_summaries", write(tmp_path / "j.jsonl", rows))
    model, reference = first.responses
    assert first.judgments[0].slots == (model.id, reference.id)
    assert second.judgments[0].slots == (reference.id, model.id)
    assert [e.judgments[0].winner for e in (first, second)] == [0, 0]
    assert drawn.judgments[0].verdict == "invalid"
    assert unjudged.judgments == ()
    assert odd.reason.startswith("judge_preferred is neither")


def test_cells_of_parquet_become_what_json_can_hold(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import datetime
    import decimal

    import pyarrow.parquet as pq

    said = {"when": datetime.date(2020, 1, 2), "price": decimal.Decimal("1.50"), "b": b"\x01", "nan": float("nan")}
    pq.write_table(
        pa.Table.from_pylist([{"prompt": "p", "chosen": "a", "rejected": "b", **said}]), tmp_path / "x.parquet"
    )
    (judgment,) = read_one("preferences", tmp_path / "x.parquet").judgments
    assert judgment.fields == {"when": "2020-01-02", "price": "1.50", "b": "01", "nan": None}


def test_parquet_without_pyarrow_is_one_sentence_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'tiebreak\[hub\]'"):
        read("preferences", tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'tiebreak\[hub\]'"):
        write_rows([{"a": 1}], tmp_path / "y.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_a_parquet_file_that_is_none(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read("preferences", tmp_path / "x.parquet")


def test_listing_the_formats_loads_no_heavy_library():
    code = "import sys, tiebreak.data.formats; print([m for m in ('pyarrow', 'torch', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
