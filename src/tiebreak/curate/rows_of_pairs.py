"""The curate steps that derive pairs and lists, order them and weigh how sure they are, by name."""

from __future__ import annotations

from tiebreak.registry import Row

_FLOW = "Dong et al. 2024, arXiv 2405.07863"
_SECRETS = "Wang et al. 2024, arXiv 2401.06080"
_CURRI = "Pattnaik et al. 2024, arXiv 2403.07230"
_ULTRA = "Cui et al. 2023, arXiv 2310.01377"
_HELPSTEER = "Wang et al. 2024, arXiv 2406.08673"

FROM_JUDGMENTS: list[Row] = [
    Row(
        name="soft_label",
        does="average the judgments of each pair over both orders into P(chosen is better)",
        target="tiebreak.curate.pairs:soft_label",
        knobs={"average": "probability", "clamp": None, "by": None},
        paper="Lee et al. 2023, arXiv 2309.00267",
    ),
    Row(
        name="plurality",
        does="the most frequent vote decides: a pair with p = 1, or a tie",
        target="tiebreak.curate.pairs:plurality",
        knobs={"by": None},
    ),
    Row(
        name="score_pairs",
        does="pairs by the ratings of answers that were judged together, with scores and a margin",
        target="tiebreak.curate.scored:score_pairs",
        knobs={"of": "mean", "gap": 0.0, "agree": False, "by": None},
        paper=_ULTRA,
    ),
    Row(
        name="ranked_list",
        does="one list per prompt: its answers graded by wins or by ratings, the best first",
        target="tiebreak.curate.lists:ranked_list",
        knobs={"grade": "wins", "by": None},
    ),
    Row(
        name="choice_of_n",
        does="one list per item: its answers graded by the share of judgments that chose each",
        target="tiebreak.curate.lists:choice_of_n",
        knobs={"by": None},
    ),
    Row(
        name="attributes",
        does="one row per answer with its mean rating by aspect, for a model of attributes",
        target="tiebreak.curate.lists:attributes",
        knobs={"aspects": None, "by": None},
        paper=_HELPSTEER,
    ),
]
"""Steps that can be the first."""

THAT_PAIR: list[Row] = [
    Row(
        name="best_worst",
        does="one pair of each prompt: the best answer against the worst",
        target="tiebreak.curate.pairing:best_worst",
        paper=_FLOW,
    ),
    Row(
        name="best_second",
        does="one pair of each prompt: the best answer against the second best",
        target="tiebreak.curate.pairing:best_second",
        paper=_FLOW,
    ),
    Row(
        name="best_random",
        does="one pair of each prompt: the best answer against any other, by chance",
        target="tiebreak.curate.pairing:best_random",
        knobs={"seed": 0},
        paper=_FLOW,
    ),
    Row(
        name="best_against_rest",
        does="of each prompt the best answer against each of the others, the widest gap first",
        target="tiebreak.curate.pairing:best_against_rest",
        paper=_CURRI,
    ),
    Row(
        name="ranked",
        does="keep the pairs that agree with the ranking of their prompt's answers by mean P(better)",
        target="tiebreak.curate.pairing:ranked",
        paper="Zhai et al. 2024, arXiv 2405.14103",
    ),
    Row(
        name="all_pairs",
        does="of each list every two answers whose grades differ",
        target="tiebreak.curate.pairing:all_pairs",
        paper=_ULTRA,
    ),
    Row(
        name="penalise_length",
        does="take from each grade a price for every character of the answer",
        target="tiebreak.curate.price:penalise_length",
        knobs={"per_character": 0.001},
        paper=_FLOW,
    ),
    Row(
        name="unpair",
        does="two rows per pair, each an answer that stands alone: 1 if chosen, 0 if rejected",
        target="tiebreak.curate.lists:unpair",
        knobs={"soft": False},
        paper="Ethayarajh et al. 2024, arXiv 2402.01306",
    ),
]
"""Steps that make pairs of lists, choose among pairs, or take pairs apart."""

THAT_LEAVE_OUT: list[Row] = [
    Row(
        name="drop",
        does="leave out ties, pairs whose judgments conflict, or pairs with the same text on both sides",
        target="tiebreak.curate.steps:drop",
        knobs={"what": "ties"},
    ),
    Row(
        name="decide",
        does="take the likelier side for the better one without doubt, p = 1",
        target="tiebreak.curate.steps:decide",
        knobs={},
    ),
    Row(
        name="confident",
        does="keep pairs whose probability is at least this far from 1/2",
        target="tiebreak.curate.steps:confident",
        knobs={"p": 0.6},
    ),
    Row(
        name="margin",
        does="keep pairs whose sides are at least this far apart",
        target="tiebreak.curate.steps:margin",
        knobs={"least": 1.0, "of": "margin"},
        paper="M-A-P 2025, arXiv 2504.05535",
    ),
    Row(
        name="agrees",
        does="keep pairs that another judge surely agrees with; those it surely disagrees with go or are flipped",
        target="tiebreak.curate.flips:agrees",
        knobs={"by": None, "p": 0.6, "recycle": False},
        paper="Liu et al. 2025, arXiv 2507.01352",
    ),
    Row(
        name="first",
        does="keep the first n rows by id, for a quick look",
        target="tiebreak.curate.steps:first",
        knobs={"n": 1000},
    ),
]
"""Steps that keep some of the rows as they are."""

BY_STRENGTH: list[Row] = [
    Row(
        name="strength",
        does="fill margin and spread: mean and standard deviation of the judges' score differences",
        target="tiebreak.curate.strength:strength",
        knobs={"of": "reward", "by": None, "least": 1},
        paper=_SECRETS,
    ),
    Row(
        name="bands",
        does="number the pairs by strength, band 0 the weakest",
        target="tiebreak.curate.order:bands",
        knobs={"edges": (0.2, 0.4, 0.9), "of": "margin"},
        paper=_SECRETS,
    ),
    Row(
        name="curriculum",
        does="number the pairs by difficulty, band 0 the easiest with the widest gaps",
        target="tiebreak.curate.order:curriculum",
        knobs={"bands": 3, "within": "prompt", "of": "margin"},
        paper=_CURRI,
    ),
    Row(
        name="band",
        does="keep the pairs of one band, or of several",
        target="tiebreak.curate.order:band",
        knobs={"keep": 0},
    ),
    Row(
        name="flip",
        does="exchange the sides of pairs whose label is likely wrong: of a band, or where the margin is below 0",
        target="tiebreak.curate.flips:flip",
        knobs={"what": 0},
        paper=_SECRETS,
    ),
    Row(
        name="smooth",
        does="make the labels of some bands less sure",
        target="tiebreak.curate.strength:smooth",
        knobs={"band": (1, 3), "alpha": 0.1},
        paper=_SECRETS,
    ),
    Row(
        name="soft_by_strength",
        does="make each label as sure as its margin: p = sigmoid(eta margin)",
        target="tiebreak.curate.strength:soft_by_strength",
        knobs={"eta": 1.0},
    ),
    Row(
        name="plant_flips",
        does="spoil labels on purpose: exchange the sides of a share of the pairs, for studies of noise",
        target="tiebreak.curate.flips:plant_flips",
        knobs={"share": 0.2, "seed": 0},
    ),
]
"""Steps on how strongly a side is preferred, and on labels that are wrong."""

ROWS: list[Row] = [*FROM_JUDGMENTS, *THAT_PAIR, *THAT_LEAVE_OUT, *BY_STRENGTH]
