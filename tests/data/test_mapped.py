"""The table format: mapping files, joins, wide and narrow votes, and messages for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiebreak.data.mapped import read
from tiebreak.data.mapping import load_mapping
from tiebreak.data.table import Entry, Refused
from tiebreak.records import InputError

MAPPINGS = Path(__file__).parents[2] / "recipes" / "mappings"

NARROW = """
source: votes
order: shown
join:
  first: {file: texts.tsv, key: id, on: "{{ pair.split('_')[0] }}"}
  second: {file: texts.tsv, key: id, on: "{{ pair.split('_')[1] }}"}
prompt: {text: "About {{ topic }}", fields: [topic]}
responses:
  - {text: "{{ first.text }}", maker: "human:{{ first.id }}"}
  - {text: "{{ second.text }}", maker: "human:{{ second.id }}"}
votes:
  - {columns: vote, values: {a1: first, a2: second, equal: tie, bad: both_bad, "": none}, by: "human:{{ worker }}"}
"""
WIDE = """
source: wide
order: unknown
prompt: {text: "{{ q }}{% if more %} {{ more }}{% endif %}"}
responses: [{text: "{{ r1 }}", maker: m1}, {text: "{{ r2 }}", maker: m2}]
votes:
  - {columns: [ann, bob], values: {1: first, 2: second, 0: tie}, by: "human:{{ column }}", fields: [id]}
"""
PAIRS = """
source: pairs
order: unknown
columns: [winner, loser]
prompt: {text: "Which is funnier?"}
responses: [{text: "{{ winner }}"}, {text: "{{ loser }}"}]
votes: [{verdict: first, by: human:crowd}]
"""


@pytest.fixture
def narrow(tmp_path):
    (tmp_path / "texts.tsv").write_text('id\ttext\nx\tsays "no\ny\t leading space\nz\tother\n')
    (tmp_path / "map.yaml").write_text(NARROW)
    return tmp_path


def votes(folder: Path, *lines: str) -> list[Entry | Refused]:
    (folder / "votes.tsv").write_text("topic\tpair\tworker\tvote\n" + "".join(line + "\n" for line in lines))
    return list(read(folder / "votes.tsv", mapping=str(folder / "map.yaml")))


def test_a_vote_with_joined_texts_and_stray_quotes(narrow):
    (entry,) = votes(narrow, "cats\tx_y\tw1\ta2")
    (judgment,) = entry.judgments
    assert entry.where == f"{narrow / 'votes.tsv'}:2"
    assert entry.prompt.text == "About cats"
    assert entry.prompt.fields == {"topic": "cats"}
    assert [r.text for r in entry.responses] == ['says "no', " leading space"]
    assert [r.maker for r in entry.responses] == ["human:x", "human:y"]
    assert (judgment.by, judgment.verdict, judgment.winner, judgment.order_known) == ("human:w1", "slot", 1, True)


def test_every_word_of_a_vote(narrow):
    entries = votes(narrow, *(f"cats\tx_y\tw\t{vote}" for vote in ("a1", "equal", "bad", "", "maybe")))
    assert [e.judgments[0].verdict for e in entries[:3]] == ["slot", "tie", "both_bad"]
    assert entries[3].judgments == ()
    assert entries[4].reason == "the vote 'maybe' in vote is none of 'a1', 'a2', 'equal', 'bad', ''"


def test_a_row_with_too_few_cells_or_no_partner_is_refused(narrow):
    short, alone = votes(narrow, "cats\tx_y\tw1", "cats\tx_q\tw1\ta1")
    assert short.reason == "3 cells where the header has 4"
    assert alone.reason == "no row in texts.tsv whose id is that of second"


def test_windows_line_ends_and_a_byte_order_mark_are_not_text(narrow):
    data = "topic\tpair\tworker\tvote\r\ncats\tx_y\tw1\ta1\r\n"
    (narrow / "votes.tsv").write_bytes(b"\xef\xbb\xbf" + data.encode())
    (entry,) = read(narrow / "votes.tsv", mapping=str(narrow / "map.yaml"))
    assert entry.judgments[0].verdict == "slot"


def test_one_judgment_per_annotator_column(tmp_path):
    (tmp_path / "map.yaml").write_text(WIDE)
    rows = [
        {"id": 7, "q": "Q", "more": "", "r1": True, "r2": "True.", "ann": 1, "bob": 0},
        {"id": 8, "q": "Q", "more": "now", "r1": "", "r2": "b", "ann": 2, "bob": 3},
        {"id": 9, "q": None, "more": "now", "r1": "", "r2": "b", "ann": 2, "bob": 1},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    first, odd, null = read(tmp_path / "t.json", mapping=str(tmp_path / "map.yaml"))
    assert first.prompt.text == "Q"
    assert first.responses[0].text == "True"
    assert [(j.by, j.verdict, j.winner) for j in first.judgments] == [
        ("human:ann", "slot", 0),
        ("human:bob", "tie", None),
    ]
    assert first.judgments[0].fields == {"id": 7}
    assert odd.reason == "the vote '3' in bob is none of '1', '2', '0'"
    assert null.reason == "null in prompt.text"


def test_a_csv_of_winner_and_loser_without_a_header(tmp_path):
    (tmp_path / "map.yaml").write_text(PAIRS)
    (tmp_path / "p.csv").write_text('a,b\n"c, ""d""\nmore",e\n')
    one, two = read(tmp_path / "p.csv", mapping=str(tmp_path / "map.yaml"))
    assert [r.text for r in one.responses] == ["a", "b"]
    assert two.responses[0].text == 'c, "d"\nmore'
    assert two.where.endswith("p.csv:2")
    assert two.judgments[0].winner == 0


def test_a_tsv_under_another_name_with_lines_before_it(tmp_path):
    text = PAIRS.replace("columns:", "read_as: tsv\nskip_lines: 1\ncolumns:")
    (tmp_path / "map.yaml").write_text(text)
    (tmp_path / "p.csv").write_text('# made by hand\n"a\tb\n')
    (entry,) = read(tmp_path / "p.csv", mapping=str(tmp_path / "map.yaml"))
    assert entry.responses[0].text == '"a'
    assert entry.where.endswith(":2")


def test_keys_that_yaml_would_turn_into_truth_values_stay_text(tmp_path):
    (tmp_path / "map.yaml").write_text(NARROW.replace("a1: first, a2: second", "yes: first, no: second, 01: tie"))
    assert list(load_mapping(tmp_path / "map.yaml").votes[0].values)[:3] == ["yes", "no", "01"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("source:", "sauce:", r"unknown key 'sauce'; there are .*Did you mean 'source'"),
        ("maker:", "makers:", r"unknown key 'responses.0.makers'.*Did you mean 'maker'"),
        (
            "{{ worker }}",
            "{{ wrker }}",
            r"votes.0 names the column 'wrker'.*topic, pair, worker, vote.*Did you mean 'worker'",
        ),
        ("columns: vote", "columns: votes", r"names the column 'votes'.*Did you mean 'vote'"),
        ("fields: [topic]", "fields: [topics]", r"prompt.fields names the column 'topics'"),
        ("equal: tie", "equal: ties", r"'ties' is no verdict; .*Did you mean 'tie'"),
        ("a2: second", "a2: third", r"names the third response and there are 2"),
        ("order: shown", "order: perhaps", r"order: .*'shown' or 'unknown', found 'perhaps'"),
        ("order: shown", "", r"the key 'order' is missing"),
        ("order: shown", "order: shown\nkeep: [empty]", r"'empty' cannot be kept; these can: empty_response"),
        ("key: id", "key: ids", r"join key names the column 'ids'.*Did you mean 'id'"),
        ("texts.tsv", "text.tsv", r"text.tsv does not exist.*Did you mean 'texts.tsv'"),
        ("{{ worker }}", "{{ worker ", r"votes.0.by 'human:\{\{ worker ' is not a template"),
        ("columns: vote, ", "columns: vote, verdict: tie, ", r"either 'columns' with 'values', or one 'verdict'"),
        ("source: votes", "source: [", r"is not YAML"),
    ],
)
def test_each_mistake_in_a_mapping_is_told_with_its_place(narrow, old, new, says):
    (narrow / "map.yaml").write_text(NARROW.replace(old, new))
    with pytest.raises(InputError, match=says):
        votes(narrow, "cats\tx_y\tw1\ta1")


def test_a_mapping_is_asked_for_and_looked_for(narrow):
    with pytest.raises(InputError, match="needs mapping=FILE"):
        list(read(narrow / "texts.tsv"))
    with pytest.raises(InputError, match="There is no mapping file"):
        list(read(narrow / "texts.tsv", mapping="none.yaml"))


def test_a_key_that_stands_twice_in_a_joined_file_is_an_error(narrow):
    (narrow / "texts.tsv").write_text("id\ttext\nx\ta\nx\tb\n")
    with pytest.raises(InputError, match=r"texts.tsv:3: id 'x' stands there twice"):
        votes(narrow, "cats\tx_y\tw1\ta1")


@pytest.mark.parametrize("path", sorted(MAPPINGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_mapping_is_valid(path):
    assert load_mapping(path).source == path.stem
