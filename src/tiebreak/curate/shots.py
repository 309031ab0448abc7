"""Preferences of single users: whose a pair is, and a prompt that shows what its user preferred before."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tiebreak.curate.knobs import check_count
from tiebreak.curate.pairs import Average, soft_label
from tiebreak.curate.table import Rows, Step, at_first
from tiebreak.curate.voices import By, heard
from tiebreak.curate.words import Made, Words, judgments_of, pairs_of_one_prompt, words_of_pairs
from tiebreak.data.drafts import Shot, with_shots
from tiebreak.judge.rubric import asked
from tiebreak.records import InputError, Judgment, Pair, content_id
from tiebreak.registry import nearest

NOBODY = "nobody's preference"
SEVERAL = "the preference of several users"
FEW = "too few other choices of the user"
"""Why :func:`few_shot_user` drops a pair."""

GROUPS = ("question", "user")


def by_user(
    rows: Rows, *, average: Average = "probability", clamp: Sequence[float] | None = None, by: By = None
) -> Step:
    """Make one pair of each item and judge, with ``user`` set to the judge: nobody's preference enters another's pair.

    A user's judgments of an item become a pair as ``soft_label`` makes one of everybody's, with the same knobs; ``by``
    says who is a user, such as ``human:*``. What a user said of an item without a readable verdict is dropped and
    counted, so more may be dropped than there are items.

    Raises:
        InputError: as for ``soft_label``.
    """
    soft_label(Rows({}), average=average, clamp=clamp)  # refuses knobs that are none, whether or not anybody judged
    said: dict[str, dict[str, list[Judgment]]] = {}
    for item, judgments in heard(at_first(rows, "by_user"), by, "by_user").items():
        for judgment in judgments:
            said.setdefault(judgment.by, {}).setdefault(item, []).append(judgment)
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for user in sorted(said):
        own = soft_label(Rows(said[user], texts=rows.texts), average=average, clamp=clamp)
        pairs += [replace(pair, user=user) for pair in own.rows if isinstance(pair, Pair)]
        dropped.update(own.dropped)
    return Step(pairs, dropped)


def few_shot_user(
    rows: Rows, *, k: int = 4, rejected: bool = True, times: int = 2, group: str = "question", seed: int = 0
) -> Step:
    """Show ``k`` other choices of its user before the question of each pair, ``times`` over with other choices.

    FSPO, Singh et al. 2025, arXiv 2502.19312. The user is the pair's own, or the one judge behind it; a pair of several
    judges is nobody's (``by_user`` makes pairs that are somebody's). The choices are drawn by ``seed`` among the
    user's pairs that are no ties and have another group of prompts than the target, so that no target, and no other
    answer to its question, is among its own shots. ``rejected`` shows the answer that was not preferred as well. A user
    with fewer than ``k`` such choices is dropped; ``k`` = 0 changes no prompt. Draws that come out the same count once.

    A prompt keeps the group of its ``question`` and may show answers to questions of another side of a split: with
    ``group`` = ``user`` all prompts of a user are one group, and a split holds out users.

    Raises:
        InputError: a knob that is none of these.
    """
    check_count("few_shot_user", "k", k, 0)
    check_count("few_shot_user", "times", times, 1)
    check_count("few_shot_user", "seed", seed, 0)
    if group not in GROUPS:
        raise InputError(
            f"few_shot_user has group = {group!r}; expected {' or '.join(GROUPS)}.{nearest(str(group), GROUPS)}"
        )
    pairs = pairs_of_one_prompt(rows, "few_shot_user")
    words, made, known = words_of_pairs(rows, pairs), Made(), judgments_of(rows)
    dropped: Counter[str] = Counter()
    owned: list[Pair] = []
    for pair in pairs:
        who = {pair.user} if pair.user else {known[key].by for key in pair.judgment_ids if key in known}
        if len(who) == 1:
            owned.append(replace(pair, user=who.pop()))
        else:
            dropped[SEVERAL if who else NOBODY] += 1
    choices = {user: _Choices(words, rejected) for user in {pair.user for pair in owned}}
    for pair in owned:
        choices[pair.user].add(pair)
    found: list[Pair] = []
    for pair in owned:
        draws = [choices[pair.user].draw(pair, k, random.Random(f"{seed} {n} {pair.id}")) for n in range(times)]
        shown = (_behind(pair, shots, words, made, group) for shots in draws if shots is not None)
        new = {row.id: row for row in shown}
        dropped[FEW] += not new
        found += new.values()
    return Step(found, dropped, made.records)


class _Choices:
    """What one user chose, to draw examples from."""

    def __init__(self, words: Words, rejected: bool) -> None:
        self._words, self._rejected = words, rejected
        self._all: list[Pair] = []
        self._of_group: Counter[str] = Counter()

    def add(self, pair: Pair) -> None:
        """Take in a pair; a tie shows no preference and is no example."""
        if pair.p > 0.5:
            self._all.append(pair)
            self._of_group[self._group(pair)] += 1

    def draw(self, target: Pair, k: int, chance: random.Random) -> list[Shot] | None:
        """Return ``k`` choices of other groups than the target's, each as likely, or None where there are too few."""
        group = self._group(target)
        own = self._of_group[group]
        if len(self._all) - own < k:
            return None
        drawn = (self._all[i] for i in chance.sample(range(len(self._all)), min(len(self._all), k + own)))
        return [self._shot(pair) for pair in drawn if self._group(pair) != group][:k]

    def _group(self, pair: Pair) -> str:
        return self._words.prompts[pair.prompt_id].group

    def _shot(self, pair: Pair) -> Shot:
        sides = [self._words.responses[side].text for side in (pair.chosen_id, pair.rejected_id)]
        question = asked(self._words.prompts[pair.prompt_id])
        return Shot(question, sides[0], sides[1] if self._rejected else "", pair.id)


def _behind(pair: Pair, shots: Sequence[Shot], words: Words, made: Made, group: str) -> Pair:
    """Return the pair with ``shots`` before its question, or as it is where there are none."""
    if not shots:
        return pair
    prompt = with_shots(words.prompts[pair.prompt_id], shots)
    if group == "user":
        prompt = replace(prompt, group=content_id("user", pair.user))
    return replace(
        pair,
        prompt_id=prompt.id,
        chosen_id=made.behind(prompt, words.responses[pair.chosen_id]),
        rejected_id=made.behind(prompt, words.responses[pair.rejected_id]),
        id="",
    )
