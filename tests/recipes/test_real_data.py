"""Real votes, verdicts and pairs, read from the data beside the repository; skipped where they are not there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tiebreak.audit.run import audit
from tiebreak.curate.table import curate
from tiebreak.data.importing import import_records
from tiebreak.data.mapped import read
from tiebreak.data.summaries import read_judged
from tiebreak.evaluate.winrate import win_rate
from tiebreak.store import Ledger

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_plurality_of_the_raw_votes_is_the_published_gold(shared_path) -> None:
    data = shared_path("ukpconvarg1")
    with Ledger(":memory:") as ledger:
        mapping = REPOSITORY / "recipes" / "mappings" / "ukpconvarg1.yaml"
        done = import_records(ledger, read(data / "crowd_votes.tsv", mapping=str(mapping)))
        judgments = ledger.judgments(done.judgment_ids)
        pairs, funnel, _ = curate(judgments, ["plurality"])
        topics = {prompt.id: prompt for prompt in ledger.prompts(done.prompt_ids)}
    assert len(judgments) == 56_308
    assert (funnel[0].rows_in, len(pairs), len(topics)) == (11_288, 11_288, 22)
    assert sum(pair.p == 0.5 for pair in pairs) > 2_000
    gold = {}
    for path in sorted((data / "strict").glob("*.csv")):
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            pair_id, label, _, _ = line.split("\t")
            gold[path.stem, pair_id] = 0 if label == "a1" else 1
    votes = {judgment.id: judgment for judgment in judgments}
    found: Counter[str] = Counter()
    for pair in pairs:
        vote = votes[pair.judgment_ids[0]]
        side = gold.get((topics[pair.prompt_id].group, vote.fields["pair_id"]))
        if side is not None:
            found["tie" if pair.p == 0.5 else "gold" if pair.chosen_id == vote.slots[side] else "other"] += 1
    assert found == {"gold": 7_427, "other": 81, "tie": 558}
    assert found["gold"] / (found["gold"] + found["other"]) > 0.983


def test_gpt4_verdicts_give_a_win_rate_and_a_first_slot_preference(shared_path) -> None:
    data = shared_path("tldr-judged")
    with Ledger(":memory:") as ledger:
        done = import_records(ledger, read_judged(data / "tldr_oai1b.jsonl"))
        judgments = ledger.judgments(done.judgment_ids)
        responses = ledger.responses(done.response_ids)
        findings = audit(ledger, done.judgment_ids)
    assert (len(done.prompt_ids), len(judgments)) == (1_300, 700)
    side = {response.id: response.maker for response in responses}
    of, against = sorted(set(side.values()), key=lambda maker: "human" in maker)
    lengths = {response.id: len(response.text.split()) for response in responses}
    measured = win_rate(judgments, side, of=of, against=against, lengths=lengths)
    assert measured.rate.n == 700
    assert measured.rate.low > 0.5
    assert measured.length_controlled.low < 0.5 < measured.length_controlled.high
    first = next(finding for finding in findings if finding.check == "position.single")
    assert first.n == 700
    assert first.low is not None
    assert first.low > 0.5
