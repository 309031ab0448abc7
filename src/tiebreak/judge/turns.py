"""The turns of a conversation in which two responses are compared.

Two shapes: one that any chat server takes, and one that begins the model's own turn, as RLAIF does.
"""

from __future__ import annotations

from tiebreak.judge.rubric import PLACE, Rubric, fill_places, join, texts_of
from tiebreak.judge.scales import Scale
from tiebreak.judge.table import Question

Messages = list[dict[str, str]]


def plain(
    words: Rubric,
    question: Question,
    why: str | None,
    *,
    scale: Scale,
    rationale: bool,
    one_step: bool = False,
    structured: bool = False,
) -> Messages:
    """Return the turns any chat server takes; ``why`` is the rationale given, None while it is asked for."""
    sections = words.sections
    case = shown(words, question, scale.asks, rationale=rationale)
    verdict = join(sections[scale.asks], _extra(words, scale), sections["structured"] * structured)
    if not rationale:
        return [_turn("user", join(case, verdict))]
    if one_step:
        return [_turn("user", join(case, sections["rationale"], sections["one step"], verdict))]
    asked = _turn("user", join(case, sections["rationale"]))
    return [asked] if why is None else [asked, _turn("assistant", why), _turn("user", verdict)]


def prefilled(
    words: Rubric,
    question: Question,
    why: str | None,
    *,
    scale: Scale,
    rationale: bool,
    one_step: bool = False,
    structured: bool = False,
) -> Messages:
    """Return one user turn and a begun assistant turn which the server continues, RLAIF's own shape.

    With a rationale the beginning alone says what to answer, ``Preferred Summary=``; an answer whose tokens do not name
    the slots has to be explained. JSON cannot be begun, ``structured`` is for ``plain``.
    """
    sections = words.sections
    asks = sections["one step"] * one_step, sections[scale.asks] * (one_step or not rationale or not scale.names)
    ending = join(sections["rationale"] * rationale, *asks, _extra(words, scale))
    user = _turn("user", join(shown(words, question, scale.asks, rationale=rationale), ending))
    if why is None or one_step:
        return [user, _turn("assistant", sections["prefill rationale"])]
    begun = f"{sections['prefill rationale']} {why}\n" if rationale else ""
    return [user, _turn("assistant", begun + sections[f"prefill {scale.asks}"])]


def _extra(words: Rubric, scale: Scale) -> str:
    return words.sections[scale.adds] if scale.adds else ""


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def shown(rubric: Rubric, question: Question, asks: str, *, rationale: bool) -> str:
    """Return the question with its texts, after the worked examples where the rubric was loaded with some.

    The examples stand where RLAIF has them, between what the file says before its first place and the texts. Each has
    the shape of the texts that follow, then the rationale where one is asked for and the answer to ``asks``.
    """
    template = rubric.sections["question"]
    texts = texts_of(question)
    if not rubric.examples:
        return fill_places(template, texts)
    preamble, sample = _halves(template)
    begin, answer = rubric.sections["prefill rationale"], rubric.sections[f"prefill {asks}"]
    worked = []
    for example in rubric.examples:
        case = fill_places(sample, {"prompt": example.prompt, "first": example.first, "second": example.second})
        why = f"{begin} {example.rationale}\n" if rationale else ""
        worked.append(f"{case}\n\n{why}{answer}{example.answers[asks]}")
    sections = rubric.sections
    return join(preamble, sections["examples"], *worked, sections["after examples"], fill_places(sample, texts))


def _halves(template: str) -> tuple[str, str]:
    """Split a question in front of the paragraph that holds its first place."""
    place = PLACE.search(template)
    at = template.rfind("\n\n", 0, place.start()) if place else -1
    return (template[:at], template[at:].strip()) if at >= 0 else ("", template)
