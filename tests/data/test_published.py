"""Published data, in the ledger and out again; skipped where the shared data folder is absent."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tiebreak.data.formats import FORMATS
from tiebreak.data.importing import Imported, import_records
from tiebreak.data.trl import SHAPES, export_pairs
from tiebreak.records import Pair
from tiebreak.store import Ledger

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
MAPPINGS = ROOT / "recipes" / "mappings"


def bring(ledger: Ledger, name: str, file: str, **knobs: object) -> Imported:
    path = DATA / file
    if not path.exists():
        pytest.skip(f"the published data {file} is not beside the repository, in shared/data")
    return import_records(ledger, FORMATS[name].load()(path, **knobs))


@pytest.mark.slow
def test_the_56308_votes_of_ukpconvarg1_come_in_once(tmp_path):
    mapping = str(MAPPINGS / "ukpconvarg1.yaml")
    with Ledger(tmp_path / "l.db") as ledger:
        first = bring(ledger, "table", "ukpconvarg1/crowd_votes.tsv", mapping=mapping)
        judgments = ledger.judgments()
        again = bring(ledger, "table", "ukpconvarg1/crowd_votes.tsv", mapping=mapping)
        stored = ledger.counts()
    assert first.counts["rows"] == first.counts["judgments_new"] == len(judgments) == 56_308
    assert first.counts["refused"] == again.counts["judgments_new"] == again.counts["prompts_new"] == 0
    assert (stored["prompts"], stored["responses"], stored["judgments"]) == (22, 712, 56_308)
    assert len({judgment.item for judgment in judgments}) == 11_288
    assert Counter(judgment.winner for judgment in judgments) == {0: 22_384, 1: 21_960, None: 11_964}
    assert [(remark.reason, remark.count, remark.kept) for remark in first.report] == [("equal responses", 35, True)]


def test_the_majority_of_pandalm_is_as_published(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger:
        imported = bring(ledger, "table", "pandalm/testset-v1.json", mapping=str(MAPPINGS / "pandalm.yaml"))
        votes = defaultdict(list)
        for judgment in ledger.judgments():
            votes[judgment.item].append(0 if judgment.winner is None else judgment.winner + 1)
    assert imported.counts["judgments_new"] == 3 * 999
    assert Counter(Counter(said).most_common(1)[0][0] for said in votes.values()) == {0: 105, 1: 422, 2: 472}


def test_hh_goes_out_in_four_shapes_and_nothing_is_lost(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    with Ledger(tmp_path / "l.db") as ledger:
        imported = bring(ledger, "hh", "hh-rlhf-harmless/harmless-base.test.dev.jsonl.gz")
        pairs = [
            Pair(prompt_id=j.prompt_id, chosen_id=j.slots[0], rejected_id=j.slots[1], n=1, judgment_ids=(j.id,))
            for j in ledger.judgments(imported.judgment_ids)
        ]
        prompts = {prompt.id: prompt for prompt in ledger.prompts()}
        responses = {response.id: response for response in ledger.responses()}
    counts = imported.counts
    assert counts["rows"] == 1_704 == counts["entries"] + counts["refused"]
    assert (counts["refused: prompts differ"], counts["refused: empty response"]) == (5, 2)
    whole = {(p.prompt_id, p.chosen_id, p.rejected_id) for p in pairs}
    assert len(whole) == len(pairs) == 1_697
    said = [(prompts[p.prompt_id].text, responses[p.chosen_id].text, responses[p.rejected_id].text) for p in pairs]
    for shape in SHAPES:
        path = tmp_path / f"{shape}.jsonl"
        export_pairs(pairs, prompts, responses, path, shape=shape)
        cache = str(tmp_path / "cache")
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache).to_list()
        expected = {
            "preference": said,
            "preference_implicit": [(head + good, head + bad) for head, good, bad in said],
            "unpaired": [row for head, good, bad in said for row in ((head, good, True), (head, bad, False))],
            "prompt_completion": [(head, good) for head, good, _ in said],
        }[shape]
        columns = [name for name in ("prompt", "chosen", "rejected", "completion", "label") if name in rows[0]]
        assert ([tuple(row[name] for name in columns) for row in rows] == expected) is True


def test_tldr_judged_has_1300_posts_and_700_verdicts(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger:
        imported = bring(ledger, "judged_summaries", "tldr-judged/tldr_oai1b.jsonl")
        judgments = ledger.judgments()
        model = {response.id for response in ledger.responses() if response.maker == "oai1b"}
    counts = imported.counts
    assert (counts["prompts_new"], counts["responses_new"], counts["judgments_new"]) == (1_300, 2_600, 700)
    first_is_model = Counter((j.slots[0] in model, j.slots[j.winner] in model) for j in judgments)
    assert first_is_model == {(True, True): 262, (False, True): 184, (False, False): 152, (True, False): 102}


def test_the_chat_demo_comes_in_from_sharegpt_turns(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger:
        imported = bring(ledger, "preferences", "chat-preference-demo/dpo_en_demo.json")
    assert imported.counts["judgments_new"] == 300
    assert [remark.count for remark in imported.report] == [5]
