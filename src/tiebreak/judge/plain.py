"""Plain rules for ranking sampled answers where there is no reward model yet: readable, stated, and none about length.

They see how an answer is written and whether it takes up what was asked. They do not see whether it is true, helpful or
safe, and no list of forbidden words pretends to. An echo of the prompt pleases them, so they are a start and no goal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from tiebreak.records import Message, Prompt

CHARACTERS = 2
"""Different letters or digits that say something: "No" does, "?!" and "aaa" do not."""

ENOUGH = 3
"""Content words of the prompt that are enough; with more to find, the longer answer would find more by chance."""

STRETCH, SLACK = 50, 3
"""Words in a stretch at most, and good ones that are lent to it: a slip at the very beginning is not everything."""

RUN = 2
"""How often a word may stand beside itself: "had had" is fine."""

LONGEST_WORD = 30
LONGEST_PUNCTUATION = 4
"""Characters of a token without letters: "..." and "```" are punctuation, "!!!!!!!!" is rubble."""

STOP_WORDS = frozenset(
    "about above after again all also and any are because been before being between both but can could did does "  # noqa: SIM905
    "doing down each else few for from had has have having her here hers him his how into its itself just may might "
    "more most much must not now off once only other our ours out over own same shall she should some such than that "
    "the their theirs them then there these they this those through too under until upon very was were what when where "
    "which while who whom whose why will with would you your yours answer describe explain give list name please show "
    "suggest summarize tell write".split()
)
"""Words about nothing, and those that ask for an answer. Words of one or two letters count for nothing anyway."""

# Chinese and Japanese are written without spaces: there a character is a word.
_ALONE = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+(?:['\u2019][^\W_{_ALONE}]+)*")
# Tokens part at spaces only: a control character that Python takes for one stays visible.
_SPACE = " \\t\\n\\r\u00a0\u2000-\u200a\u202f\u3000"
_TOKEN = re.compile(rf"[{_ALONE}]|[^{_SPACE}{_ALONE}]+")
_LETTERS = re.compile(r"[^\W\d_]+(?:['\u2019&/.\u2013\u2014-]+[^\W\d_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,:/%\u2013-]*\d+)*[^\W\d_]{0,3}|[^\W\d_]{1,3}-?\d+[^\W\d_]{0,3}")
_SAME = re.compile(r"(.)\1\1\1", re.DOTALL)
_VOWEL = re.compile(r"[aeiouy]", re.IGNORECASE)
_USUAL = ("L", "N", "P", "Sc", "Sm", "Sk")
_JOINERS = "\u200c\u200d"
_ENDED = re.compile(
    r"[.!?\u2026\u061f\u06d4\u0964\u3002\uff01\uff1f][\s\"'\u201d\u2019\u00bb)\]}*_`\u300d\u300f\uff09]*\Z"
)
_CLOSED = re.compile(r"\S[\"\u201d\u00bb)\]}\u300d\u300f\uff09]\s*\Z|```\s*\Z")
_MARK = re.compile(r"\n\s*\(?(?:\d{1,3}|[a-zA-Z])[.)]\s*\Z")
_ITEM = re.compile(r"\s*(?:[-*+\u2022\u2013]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s+\S")


class Parts(NamedTuple):
    """What :func:`quality` is made of, each from 0 to 1; see there."""

    says: float
    topic: float
    fresh: float
    words: float
    ends: float


def quality(prompt: Prompt, text: str) -> float:
    """Return how well ``text`` is written as an answer to ``prompt``, from 0 to 1.

    quality = says x fresh x words x (1 + topic) / 2 x (1 + ends) / 2, where

    - says = min(1, different letters and digits / 2): something is said at all;
    - topic = min(1, taken / min(3, ceil(n / 2))): of the n content words of what was asked, how many it takes up; 1
      where n = 0;
    - fresh = (1 - worst share of repeated trigrams) x min(1, 2 / longest run of one word);
    - words = 1 - worst share of tokens that are no words, numbers or punctuation, or hold a control character, a
      replacement character or an unusual symbol;
    - ends = 1 where it ends as a sentence, a closed quote or bracket, or a list does, else 0.

    It is a product, for a loop or rubble cannot be paid for by taking up what was asked; topic and end are seen only
    roughly, so each can halve the quality and no more.

    The worst share is that of the worst stretch: max over all stretches of at most 50 in a row of faults / (length +
    3). A mean over the whole text would be thinned out by adding more; the worst stretch never is. So text put behind
    an answer can raise its quality in three ways only: where hardly anything was said, by taking up what was asked, and
    by ending.
    """
    parts = parts_of(prompt, text)
    return parts.says * parts.fresh * parts.words * (1 + parts.topic) / 2 * (1 + parts.ends) / 2


def parts_of(prompt: Prompt, text: str) -> Parts:
    """Return the parts of the quality of ``text``, to see what decided."""
    words = _words(text)
    return Parts(
        says=min(1.0, len({letter for word in words for letter in word if letter.isalnum()}) / CHARACTERS),
        topic=_topic(prompt, words),
        fresh=_fresh(words),
        words=1.0 - _worst([not _is_word(token) for token in _TOKEN.findall(text)]),
        ends=float(_ends(text)),
    )


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(_bare(text))]


def _bare(text: str) -> str:
    """Return ``text`` without marks that stand on letters, which Python's patterns take for gaps between words."""
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFC", text)
    return "".join(c for c in composed if not unicodedata.category(c).startswith("M") and c not in _JOINERS)


def _topic(prompt: Prompt, words: Iterable[str]) -> float:
    wanted = _content(_asked(prompt))
    if not wanted:
        return 1.0
    taken = len(wanted & {_stem(word) for word in words})
    return min(1.0, taken / min(ENOUGH, (len(wanted) + 1) // 2))


def _asked(prompt: Prompt) -> str:
    """Return what was asked last, with the context it is about."""
    turns = [turn for turn in prompt.text if isinstance(turn, Message)]
    last = next((turn.content for turn in reversed(turns) if turn.role == "user"), prompt.plain)
    return f"{prompt.context}\n{last}"


@lru_cache(maxsize=4096)
def _content(text: str) -> frozenset[str]:
    """Return the stems of the content words of ``text``: words of three letters that are no stop words, and numbers."""
    return frozenset(
        _stem(word)
        for word in set(_words(text)) - STOP_WORDS
        if len(word) > 2 or word.isdecimal() or (len(word) == 1 and unicodedata.category(word) == "Lo")
    )


def _stem(word: str) -> str:
    """Return an English word without the ending of a plural or a tense, so that "plants" takes up "plant"."""
    word = word.removesuffix("'s").removesuffix("\u2019s")
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) > 2 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            break
    return word.removesuffix("e") if len(word) > 3 else word


def _fresh(words: Sequence[str]) -> float:
    seen: set[tuple[str, ...]] = set()
    repeated: list[bool] = []
    for trigram in zip(words, words[1:], words[2:], strict=False):
        repeated.append(trigram in seen)
        seen.add(trigram)
    run = longest = 1
    for before, word in pairwise(words):
        run = run + 1 if word == before else 1
        longest = max(longest, run)
    return (1.0 - _worst(repeated)) * min(1.0, RUN / longest)


def _worst(faults: Sequence[bool]) -> float:
    """Return the largest share of faults in any stretch, those that begin the text included."""
    worst = 0.0
    inside = 0
    for i, fault in enumerate(faults):
        inside += fault - (faults[i - STRETCH] if i >= STRETCH else 0)
        worst = max(worst, inside / (min(i + 1, STRETCH) + SLACK))
    return worst


def _is_word(token: str) -> bool:
    """Whether a token is a word, a number or punctuation, in characters that prose is written in."""
    token = _bare(token)
    if not all(unicodedata.category(c).startswith(_USUAL) and c != "\ufffd" for c in token):
        return False
    core = token.strip("".join(c for c in set(token) if unicodedata.category(c)[0] in "PS"))
    if not core:
        return len(token) <= LONGEST_PUNCTUATION
    if len(core) > LONGEST_WORD or _SAME.search(core):
        return False
    if _NUMBER.fullmatch(core):
        return True
    spelled = len(core) < 5 or not core.isascii() or core.isupper() or bool(_VOWEL.search(core))
    return spelled and _LETTERS.fullmatch(core) is not None


def _ends(text: str) -> bool:
    """Whether ``text`` ends as what was not cut does: a sentence, a quote, a bracket, code or an item of a list."""
    if _MARK.search(text):
        return False  # the next item of a list was begun
    if _ENDED.search(text) or _CLOSED.search(text):
        return True
    last = text.rstrip().rpartition("\n")[2]
    return _ITEM.match(last) is not None
