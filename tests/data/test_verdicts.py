"""Published verdicts: the readers on files made here, and published figures from the ledger where the data is there."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tiebreak.data.importing import import_records
from tiebreak.data.mapped import read as read_mapped
from tiebreak.data.table import Entry, Refused
from tiebreak.data.verdicts import EXPERTS, UNREAD, UNSCORED, read_llmbar, read_reviews
from tiebreak.evaluate.judges import accuracy, as_markdown, judge_table, judges_of, kappa, known_answers, leave_one_out
from tiebreak.evaluate.ratings import standings
from tiebreak.evaluate.winrate import win_rate
from tiebreak.records import InputError, Judgment, Response
from tiebreak.stats.agreement import cohen_kappa
from tiebreak.stats.intervals import Estimate
from tiebreak.store import Ledger

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "judges.md"
MAPPINGS = ROOT / "recipes" / "mappings"
HEAD = "subset,item,judge,strategy,human_label,winner_order_ab,winner_order_ba,score_1,score_2"
PAIRS = [
    {"input": "Count to two.", "output_1": "1, 2", "output_2": "One.", "label": 1},
    {"input": "Count to two.", "output_1": "Two.", "output_2": "one, two", "label": 2},
    {"input": None, "output_1": "a", "output_2": "b", "label": 1},
]


@pytest.fixture
def llmbar(tmp_path: Path) -> Callable[..., list[Entry | Refused]]:
    """Read rows of verdicts on ``PAIRS``, which are the subset Adversarial/Manual."""
    (tmp_path / "Adversarial-Manual.json").write_text(json.dumps(PAIRS))

    def read(*rows: str) -> list[Entry | Refused]:
        lines = "".join(f"Adversarial/Manual,{row}\n" for row in rows)
        (tmp_path / "verdicts.csv").write_text(f"{HEAD}\n{lines}")
        return list(read_llmbar(tmp_path / "verdicts.csv"))

    return read


def test_a_verdict_in_both_orders_is_two_judgments_with_the_slots_as_shown(llmbar):
    (entry,) = llmbar("0,GPT-4,CoT,1,1,2,,")
    gold, one, two = entry.judgments
    first, second = entry.responses
    assert (gold.by, gold.slots, gold.winner, gold.order_known) == (EXPERTS, (first.id, second.id), 0, False)
    assert (one.by, one.slots, one.winner, one.order_known) == ("model:GPT-4/CoT", (first.id, second.id), 0, True)
    assert (two.slots, two.winner) == ((second.id, first.id), 0)  # output 2 won where it was shown first
    assert one.fields == {"subset": "Adversarial/Manual", "item": 0}
    assert [text.text for text in entry.responses] == ["1, 2", "One."]


def test_the_label_comes_once_and_an_unread_reply_is_no_side(llmbar):
    first, second, other = llmbar("0,GPT-4,CoT,1,,1,,", "0,GPT-4,Swap,1,1,1,,", "1,GPT-4,CoT,2,2,2,,")
    assert [j.by for j in second.judgments] == ["model:GPT-4/Swap"] * 2
    assert [j.by for j in other.judgments] == [EXPERTS, "model:GPT-4/CoT", "model:GPT-4/CoT"]
    _, unread, said = first.judgments
    assert (unread.verdict, unread.winner, unread.fields["why"]) == ("invalid", None, UNREAD)
    assert (said.verdict, said.winner) == ("slot", 1)


def test_a_rating_is_one_judgment_without_an_order(llmbar):
    rows = llmbar("0,G,Rating,1,1,1,7,6", "0,G,Rating_NoRules,1,2,1,5,5", "1,G,Rating,2,1,2,,0")
    clear, equal, unread = (entry.judgments[-1] for entry in rows)
    assert (clear.verdict, clear.winner, clear.ratings, clear.order_known) == ("slot", 0, {"score": [7.0, 6.0]}, False)
    assert (equal.verdict, equal.winner) == ("tie", None)
    assert (unread.verdict, unread.ratings, unread.fields["why"]) == ("invalid", {"score": [None, 0.0]}, UNSCORED)


def test_rows_that_fit_no_pair_are_refused_with_the_reason(llmbar):
    found = llmbar("0,G,CoT,2,1,1,,", "3,G,CoT,1,1,1,,", "x,G,CoT,1,1,1,,", "2,G,CoT,1,1,1,,", "0,G,CoT,1,1,1")
    assert [row.reason for row in found] == [
        "human_label is not the label of its pair",
        "item is not one of the pairs of Adversarial/Manual, which count from 0",
        "item is not one of the pairs of Adversarial/Manual, which count from 0",
        "its pair: missing input",
        "7 cells where the header has 9",
    ]


def test_a_result_file_of_the_repository_says_the_same_with_the_replies(tmp_path, llmbar):
    def order(winner: str | None, text: str) -> dict[str, object]:
        return {"winner": winner, "completion": [text, "stop"]}

    folder = tmp_path / "LLMBar" / "Adversarial" / "Manual" / "evaluators" / "GPT-4"
    plain = [
        PAIRS[0]
        | {"results": [{}, {"swap = False": order("1", "Output (a)"), "swap = True": order("2", "Output (b)")}]},
        PAIRS[1] | {"results": [{"swap = False": order(None, "Hm."), "swap = True": order("1", "Output (b)")}]},
        PAIRS[2] | {"results": []},
        PAIRS[0] | {"results": []},
    ]
    rated = [PAIRS[0] | {"results": [{"score_1": ["7", "stop"], "score_2": ["6.5", "stop"]}]}]
    for name, rows in (("CoT", plain), ("Rating", rated)):
        (folder / name).mkdir(parents=True)
        (folder / name / "result.json").write_text(json.dumps(rows))
    one, two, *refused = read_llmbar(folder / "CoT" / "result.json")
    for entry, same in zip((one, two), llmbar("0,GPT-4,CoT,1,1,2,,", "1,GPT-4,CoT,2,,1,,"), strict=True):
        for ours, theirs in zip(entry.judgments, same.judgments, strict=True):
            assert (ours.by, ours.slots, ours.winner, ours.fields) == (
                theirs.by,
                theirs.slots,
                theirs.winner,
                theirs.fields,
            )
    assert [j.raw for j in one.judgments] == ["", "Output (a)", "Output (b)"]
    assert [row.reason for row in refused] == ["missing input", "missing results"]
    (entry,) = read_llmbar(folder / "Rating" / "result.json")
    assert (entry.judgments[1].verdict, entry.judgments[1].raw) == ("invalid", "7\n6.5")
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(InputError, match="does not lie in SUBSET/evaluators/JUDGE/STRATEGY"):
        list(read_llmbar(tmp_path / "result.json"))


def test_the_mapping_of_the_pairs_makes_the_same_prompts_answers_and_labels(tmp_path, llmbar):
    (entry,) = llmbar("1,G,CoT,2,1,1,,")
    _, mapped, _ = read_mapped(tmp_path / "Adversarial-Manual.json", mapping=str(MAPPINGS / "llmbar.yaml"))
    assert mapped.prompt.id == entry.prompt.id
    assert mapped.responses == entry.responses
    assert mapped.judgments == entry.judgments[:1]


@pytest.fixture
def reviews(tmp_path: Path) -> Callable[..., list[Entry | Refused]]:
    """Read reviews of two answers, a1 and a2, to question 1."""
    (tmp_path / "question.jsonl").write_text('{"question_id": 1, "text": "Why?", "category": "generic"}\n')
    for answer, text in (("a1", "Because."), ("a2", "")):
        row = {"answer_id": answer, "question_id": 1, "model_id": f"model-{answer}", "text": text}
        (tmp_path / f"answer_{answer}.jsonl").write_text(json.dumps(row) + "\n")
    base = {"review_id": "r", "question_id": 1, "answer1_id": "a1", "answer2_id": "a2", "reviewer_id": "gpt-4-x"}

    def read(*rows: dict[str, object], **knobs: str) -> list[Entry | Refused]:
        told = [base | {"text": "9 7\nClear and right.", "score": [9, 7]} | row for row in rows]
        (tmp_path / "review.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
        return list(read_reviews(tmp_path / "review.jsonl", **knobs))

    return read


def test_a_review_keeps_its_scores_and_the_higher_one_wins(reviews):
    (entry,) = reviews({})
    (judgment,) = entry.judgments
    assert (judgment.verdict, judgment.winner, judgment.ratings) == ("slot", 0, {"score": [9.0, 7.0]})
    assert (judgment.by, judgment.order_known) == ("model:gpt-4-x", True)
    assert (judgment.rationale, judgment.raw) == ("Clear and right.", "9 7\nClear and right.")
    assert judgment.fields == {"question_id": 1, "review_id": "r", "reviewer_id": "gpt-4-x"}
    assert [response.maker for response in entry.responses] == ["model-a1", "model-a2"]
    assert (entry.prompt.fields, entry.prompt.source) == ({"category": "generic"}, "review")
    assert entry.keeps == ("empty_response",)


def test_equal_scores_tie_and_scores_below_zero_are_unread(reviews):
    words = reviews({"score": [8, 8], "text": "Both are fine."}, {"score": [-1, -1]}, {"score": [0, 1]}, by="model:j")
    tie, unread, odd = (entry.judgments[0] for entry in words)
    assert (tie.verdict, tie.rationale, tie.by) == ("tie", "Both are fine.", "model:j")
    assert (unread.verdict, unread.ratings, unread.fields["why"]) == ("invalid", {"score": [None, None]}, UNSCORED)
    assert (odd.winner, odd.rationale) == (1, "9 7\nClear and right.")  # the first line is not these scores


def test_reviews_that_point_nowhere_are_refused_and_broken_files_told(reviews, tmp_path):
    found = reviews({"question_id": 2}, {"answer2_id": "a9"}, {"score": None}, {"reviewer_id": None})
    assert [row.reason for row in found] == [
        "no question has its question_id",
        "an answer id is that of no answer to its question",
        "missing score",
        "missing reviewer_id, and by names nobody",
    ]
    with pytest.raises(InputError, match=r"column 'score' holds .*expected two numbers"):
        reviews({"score": [1, "2"]})
    with pytest.raises(InputError, match=r"No file in .* is called nothing\*; name the files of answers"):
        reviews({}, answers="nothing*")
    (tmp_path / "answer_again.jsonl").write_text((tmp_path / "answer_a1.jsonl").read_text())
    with pytest.raises(InputError, match=r"answer_again.jsonl:1: answer_id 'a1' stands there twice"):
        reviews({})


class Bar(NamedTuple):
    """LLMBar in a ledger: every judgment, the verdicts by subset and judge, the label's slots by item."""

    judgments: list[Judgment]
    groups: dict[tuple[str, str], list[Judgment]]
    gold: dict[str, Judgment]
    published: list[dict[str, str]]


@pytest.fixture(scope="module")
def bar(shared_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bar]:
    path = shared_path("llmbar/judge_verdicts.csv")
    with Ledger(tmp_path_factory.mktemp("llmbar") / "l.db") as ledger:
        counts = import_records(ledger, read_llmbar(path)).counts
        judgments = ledger.judgments()
    assert (counts["rows"], counts["refused"], counts["prompts_new"]) == (27_235, 0, 418)
    assert counts["judgments_new"] == 419 + 2 * (27_235 - 2_933) + 2_933
    groups = defaultdict(list)
    for judgment in judgments:
        if judgment.by != EXPERTS:
            groups[judgment.fields["subset"], judgment.by].append(judgment)
    gold = {judgment.item: judgment for judgment in judgments if judgment.by == EXPERTS}
    with path.with_name("judge_statistics.csv").open() as file:
        yield Bar(judgments, groups, gold, list(csv.DictReader(file)))


def outputs(bar: Bar, group: list[Judgment]) -> list[tuple[int | None, int | None]]:
    """For each item the output (0 or 1) that won in the order of the file and in the other; None where none did.

    The published table gives a rating an order: a tie is the second output, then the first, an unread score the other
    way round.
    """
    won: dict[str, list[int | None]] = defaultdict(lambda: [None, None])
    for j in group:
        frame = bar.gold[j.item].slots
        winner = None if j.winner is None else frame.index(j.slots[j.winner])
        if j.ratings:
            won[j.item] = [winner, winner] if winner is not None else [1, 0] if j.verdict == "tie" else [0, 1]
        else:
            won[j.item][int(j.slots != frame)] = winner
    return [(one, two) for one, two in won.values()]


@pytest.mark.slow
def test_all_325_published_accuracies_of_llmbar_come_out_of_the_ledger(bar):
    answers = known_answers(bar.gold.values())
    assert len(bar.published) == len(bar.groups) == 325
    for row in bar.published:
        group = bar.groups[row["subset"], f"model:{row['judge']}/{row['strategy']}"]
        rated = row["strategy"].startswith("Rating")
        found = accuracy(group, answers, unanswered="half" if rated else "wrong").rate
        assert f"{100 * found.value:.9f}" == f"{float(row['published_average_accuracy'].rstrip('%')):.9f}", row


@pytest.mark.slow
def test_the_325_published_agreements_of_the_two_orders_come_out_too(bar):
    for row in bar.published:
        won = outputs(bar, bar.groups[row["subset"], f"model:{row['judge']}/{row['strategy']}"])
        same = sum(one == two for one, two in won)  # two unread replies are "equal" there
        assert row["published_positional_agreement"].startswith(f"{same} / {len(won)} = ")
        first = np.array([[side == 0 for side in orders] for orders in won])  # unread counts as the second output
        value = cohen_kappa(first[:, 0], first[:, 1], draws=0).value
        assert value == pytest.approx(float(row["published_kappa_agreement"]), abs=1e-12), row


@pytest.mark.slow
def test_the_table_in_the_docs_is_that_of_the_ledger(bar):
    shown = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| model:") and "/" in line
    ]
    rows = judge_table((j for j in bar.judgments if j.by != EXPERTS), known_answers(bar.gold.values()))
    assert len(rows) == 65
    assert len(shown) > 10
    assert set(shown) <= set(as_markdown(rows).splitlines())


@pytest.fixture(scope="module")
def pandalm(shared_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    files = {"pandalm": "testset", "pandalm-7b": "pandalm-7b-testset", "pandalm-gpt-3.5-turbo": "gpt-3.5-turbo-testset"}
    with Ledger(tmp_path_factory.mktemp("pandalm") / "l.db") as ledger:
        for mapping, file in files.items():
            path = shared_path(f"pandalm/{file}-v1.json")
            brought = import_records(ledger, read_mapped(path, mapping=str(MAPPINGS / f"{mapping}.yaml"))).counts
            assert (brought["rows"], brought["refused"]) == (999, 0)
        assert (ledger.counts()["prompts"], ledger.counts()["judgments"]) == (170, 5 * 999)
        yield ledger


def test_the_kappas_of_pandalms_people_are_as_published(pandalm):
    judgments = pandalm.judgments()
    people = [f"human:annotator{n}" for n in (1, 2, 3)]
    for sides in ("shown", "balanced"):
        found = [kappa(judgments, *pair, sides=sides) for pair in itertools.combinations(people, 2)]
        assert [f"{each.kappa.value:.2f}" for each in found] == ["0.85", "0.88", "0.86"]
        assert [each.kappa.n for each in found] == [999] * 3
        assert all(each.kappa.low < each.kappa.value < each.kappa.high for each in found)


def test_pandalms_models_agree_with_the_majority_as_published(pandalm):
    rows = {row.judge: row.accuracy for row in judges_of(pandalm, "human", ties="class")}
    small, large = rows["model:pandalm-7b"], rows["model:gpt-3.5-turbo"]
    assert small is not None
    assert large is not None
    assert f"{small.rate.value:.4f}" == "0.6677"
    assert (f"{large.rate.value:.4f}", large.invalid) == ("0.6977", 25)
    # The published 0.7107 takes its 25 unreadable replies for ties; people call 13 of those items a tie.
    judgments = pandalm.judgments()
    answers = known_answers(j for j in judgments if j.by.startswith("human:"))
    lucky = sum(answers.labels[j.item] == "tie" for j in judgments if j.verdict == "invalid")
    assert f"{(large.rate.value * 999 + lucky) / 999:.4f}" == "0.7107"
    assert answers.undecided == 0
    assert Counter(label if label == "tie" else "side" for label in answers.labels.values())["tie"] == 105


def cell(estimate: Estimate) -> str:
    """A share as the page shows it."""
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def test_pandalms_people_reach_what_its_models_do_not(pandalm):
    people = leave_one_out([j for j in pandalm.judgments() if j.by.startswith("human:")], ties="class")
    models = judges_of(pandalm, "human", ties="class")
    assert min(found.rate.low for found in people.values()) > max(row.accuracy.rate.high for row in models)
    for name, found in [*people.items(), *((row.judge, row.accuracy) for row in models)]:
        assert f"| {name} | {cell(found.rate)} | {found.rate.n} |" in PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def vicuna(
    shared_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Judgment], dict[str, Response]]:
    folder = shared_path("vicuna80/question.jsonl").parent
    with Ledger(tmp_path_factory.mktemp("vicuna") / "l.db") as ledger:
        for path in sorted(folder.glob("review_*.jsonl")):
            assert import_records(ledger, read_reviews(path, by="model:gpt-4")).counts["judgments_new"] == 80
        return ledger.judgments(), {response.id: response for response in ledger.responses()}


def test_the_five_systems_of_vicuna80_stand_in_their_known_order(vicuna):
    judgments, responses = vicuna
    side = {key: response.maker.split(":")[0] for key, response in responses.items()}
    found = standings(judgments, side)
    assert [row.name for row in found] == ["gpt-3.5-turbo", "vicuna-13b", "bard", "alpaca-13b", "llama-13b"]
    sure = [row.lead is not None and row.lead.low > 0 for row in found]
    assert sure == [True, False, True, True, False]  # Vicuna is not surely ahead of Bard
    for row in found:
        shown = [f"{e.value:+.2f} ({e.low:+.2f} to {e.high:+.2f})" if e else "-" for e in (row.rating, row.lead)]
        assert f"| {row.name} | {' | '.join(shown)} | {cell(row.score)} |" in PAGE.read_text(encoding="utf-8")
    lengths = {key: len(response.text) for key, response in responses.items()}
    pair = win_rate(judgments, side, of="vicuna-13b", against="bard", lengths=lengths)
    assert (pair.wins, pair.ties, pair.losses, pair.rate.value) == (40, 10, 30, 0.5625)


def test_the_scores_of_vicuna80_are_kept(vicuna):
    judgments, responses = vicuna
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for judgment in judgments:
        makers = [responses[slot].maker.split(":")[0] for slot in judgment.slots]
        for maker, score in zip(makers, judgment.ratings["score"], strict=True):
            sums[maker, makers[1 - makers.index(maker)]] += score
    assert (sums["llama-13b", "vicuna-13b"], sums["vicuna-13b", "llama-13b"]) == (513.0, 694.0)
    assert (sums["bard", "vicuna-13b"], sums["vicuna-13b", "bard"]) == (664.0, 655.5)
    assert (sums["gpt-3.5-turbo", "vicuna-13b"], sums["vicuna-13b", "gpt-3.5-turbo"]) == (693.0, 638.0)
    assert Counter(j.verdict for j in judgments) == {"slot": 366, "tie": 34}
