"""A small English world with a known truth, for learning the whole loop on two cores.

Each post has the shape of a TL;DR post: a subreddit, a title and a few sentences, among which four key facts hide: who
it is about (relation and name), the problem and the question. Distractor sentences name other people and other things.
Written summaries are deliberately mixed (complete, partial, wordy, hallucinating), so a model trained on them is
mediocre and preferences have something to teach. The true quality of any text is computed from the facts, so the
accuracy of every judge and reward model and the win rate of every policy can be checked against it.

Held-out posts (tag ``held-out``) use pairs of name and problem that no other post uses, so memorising does not help.

Not modelled: grammar and fluency (a bare list of the right key words scores full marks), tone, safety, paraphrase
outside the listed forms, degrees of importance between facts, and disagreement between readers about what is good.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from tiebreak.data.table import Entry
from tiebreak.records import InputError, Prompt, Response

RELATIONS = tuple(
    "sister brother mother father boss roommate neighbor cousin teacher friend girlfriend boyfriend aunt uncle".split()  # noqa: SIM905
)
NAMES = tuple(
    "Anna Ben Carla David Emma Felix Grace Henry Ivy Jack Kate "  # noqa: SIM905
    "Liam Mia Noah Olga Paul Rosa Sam Tina Victor Wendy Yara".split()
)


class Theme(NamedTuple):
    """One problem or question: its key word, the forms a post uses and the forms a summary uses."""

    key: str
    told: tuple[str, ...]
    short: tuple[str, ...]


PROBLEMS = (
    Theme("food", ("keeps eating my food", "takes the food I cook without asking"), ("eats my food", "takes my food")),
    Theme("music", ("plays loud music all night", "turns the music up when I sleep"), ("plays loud music",)),
    Theme("money", ("never pays back the money I lent", "still owes me a lot of money"), ("owes me money",)),
    Theme("car", ("drove my car into a wall", "took my car and broke it"), ("broke my car",)),
    Theme("dog", ("lets a big dog sleep in my bed", "hit my dog for no reason"), ("makes trouble with a dog",)),
    Theme("secret", ("told everyone my secret", "used my secret to hurt me"), ("told my secret",)),
    Theme("wedding", ("wants to skip my wedding", "made a scene at my wedding"), ("ruins my wedding",)),
    Theme("job", ("tried to get me out of my job", "wants me to quit my job"), ("is after my job",)),
    Theme("phone", ("reads the messages on my phone", "went through my phone last night"), ("reads my phone",)),
    Theme("dishes", ("never washes the dishes", "leaves all the dirty dishes to me"), ("never does the dishes",)),
    Theme("rent", ("is late with the rent again", "refuses to pay the rent"), ("does not pay the rent",)),
    Theme("party", ("threw a party without asking me", "keeps coming to my party drunk"), ("spoils my party",)),
    Theme("cat", ("gave my cat away", "let my cat run out of the door"), ("lost my cat",)),
    Theme("guitar", ("sold my old guitar", "broke my guitar and laughed"), ("sold my guitar", "broke my guitar")),
    Theme("kitchen", ("smokes in the kitchen", "burned down half of the kitchen"), ("smokes in the kitchen",)),
    Theme("exam", ("copied from me in the exam", "laughed when I failed the exam"), ("copied my exam",)),
)
QUESTIONS = (
    Theme("move", ("Should I move out?", "Is it time to move away?"), ("Should I move out?",)),
    Theme("talk", ("How do I talk about this without a fight?", "Should we sit down and talk?"), ("How do I talk?",)),
    Theme("forgive", ("Can I ever forgive this?", "Would you forgive such a thing?"), ("Should I forgive?",)),
    Theme("police", ("Should I call the police?", "Is this a case for the police?"), ("Should I call the police?",)),
    Theme("sorry", ("Am I the one who should say sorry?", "Do I have to be sorry?"), ("Should I say sorry?",)),
    Theme("ignore", ("Is it better to ignore it?", "Should I just ignore it?"), ("Should I ignore it?",)),
    Theme("lawyer", ("Do I need a lawyer?", "Would a lawyer help me here?"), ("Do I need a lawyer?",)),
    Theme("revenge", ("Is it wrong to want revenge?", "How do I get some revenge?"), ("Is revenge wrong?",)),
)
SUBREDDITS = ("relationships", "advice", "family", "tifu")
TITLES = ("I need some advice", "What would you do?", "Trouble with my {relation}", "I am at a loss about {name}")
MEETINGS = ("This is about my {relation} {name}.", "My {relation} is called {name}.", "I have a {relation}, {name}.")
TELLINGS = ("Now {name} {told}.", "Last week I saw that {name} {told}.", "The trouble is that {name} {told}.")
DISTRACTORS = (
    "I am 22 and live in a small town.",
    "We have known each other for years.",
    "It rained the whole week.",
    "Work has been hard for me lately.",
    "I do not sleep well.",
    "My {relation} {name} says I worry too much.",
    "{name} from school thinks it is funny.",
    "My {relation} does not believe me.",
    "I asked {name} but got no answer.",
    "Sorry for the long post.",
)
SUMMARIES = ("My {relation} {name} {short}. {ask}", "{name}, my {relation}, {short}. {ask}")
PARTIALS = ("My {relation} {short}.", "{name} {short}.", "My {relation} {name} {short}.", "{name} {short}. {ask}")
FILLERS = (
    "I really do not know what to do about it any more and I feel so bad.",
    "It has been going on for a long time and I would like to hear what you all think about it.",
)
TARGET_SHARES = {"complete": 0.35, "partial": 0.25, "wordy": 0.20, "hallucinating": 0.20}
FACTS = ("relation", "name", "problem", "question")
FREE_WORDS = 14
"""A summary may have this many words before each further one costs quality."""

_KEYS = {
    "relation": frozenset(RELATIONS),
    "name": frozenset(name.lower() for name in NAMES),
    "problem": frozenset(theme.key for theme in PROBLEMS),
    "question": frozenset(theme.key for theme in QUESTIONS),
}


class Quality(NamedTuple):
    """The true quality of a summary and its parts: facts covered, facts invented, words."""

    total: float
    covered: int
    invented: int
    words: int


def judge_quality(prompt: Prompt, text: str) -> Quality:
    """Return the exact quality of ``text`` as a summary of the world's ``prompt``.

    ``total`` = facts covered (0 to 4) - facts invented - 0.1 for each word past 14. A fact is covered when its key word
    occurs; each key word of another value counts as invented once.

    Raises:
        InputError: the prompt does not come from this world.
    """
    missing = [fact for fact in FACTS if fact not in prompt.fields]
    if missing:
        raise InputError(
            f"The world's truth needs the fields {', '.join(FACTS)}, and prompt {prompt.id} has no {missing[0]!r}; "
            "it was not made by format=world, use another rule or judge."
        )
    words = re.findall(r"[a-z0-9']+", text.lower())
    said = set(words)
    covered = invented = 0
    for fact in FACTS:
        truth = str(prompt.fields[fact]).lower()
        covered += truth in said
        invented += len((_KEYS[fact] & said) - {truth})
    total = covered - invented - 0.1 * max(0, len(words) - FREE_WORDS)
    return Quality(round(total, 6), covered, invented, len(words))


def quality(prompt: Prompt, text: str) -> float:
    """Return the true quality of ``text``: the rule ``world``. See :func:`judge_quality`."""
    return judge_quality(prompt, text).total


def read(path: object = None, *, n: int = 2000, held_out: int = 0, seed: int = 0) -> Iterator[Entry]:
    """Yield ``n`` posts, then ``held_out`` posts of the tag ``held-out``, each with one written summary.

    The post's reference is a complete summary; the written one (maker ``human:KIND``) is of a kind drawn by
    ``TARGET_SHARES``. The same seed gives the same world on every machine; ``path`` is not used.
    """
    for count, tag in ((n, ""), (held_out, "held-out")):
        for number in range(count):
            yield _entry(random.Random(f"{seed}/{tag}/{number}"), tag, f"world:{tag or 'post'}:{number + 1}")


class _Facts(NamedTuple):
    relation: str
    name: str
    problem: Theme
    question: Theme


_VALUES = _Facts(RELATIONS, NAMES, PROBLEMS, QUESTIONS)  # type: ignore[arg-type]


def _entry(rng: random.Random, tag: str, where: str) -> Entry:
    facts = _facts(rng, held_out=tag == "held-out")
    prompt = Prompt(
        text=_post(rng, facts),
        reference=" " + _summary(rng, SUMMARIES, facts),
        fields={
            "relation": facts.relation,
            "name": facts.name,
            "problem": facts.problem.key,
            "question": facts.question.key,
        },
        tags=(tag,) if tag else (),
        source="tiebreak world",
        licence="Apache-2.0",
    )
    kind = rng.choices(list(TARGET_SHARES), list(TARGET_SHARES.values()))[0]
    written = Response(prompt_id=prompt.id, text=" " + _target(rng, kind, facts), maker=f"human:{kind}")
    return Entry(where, prompt, (written,), ())


def _facts(rng: random.Random, *, held_out: bool) -> _Facts:
    while True:
        name, problem = rng.randrange(len(NAMES)), rng.randrange(len(PROBLEMS))
        if ((name + problem) % 7 == 0) == held_out:
            return _Facts(rng.choice(RELATIONS), NAMES[name], PROBLEMS[problem], rng.choice(QUESTIONS))


def _post(rng: random.Random, facts: _Facts) -> str:
    names = {"relation": facts.relation, "name": facts.name}
    body = [
        rng.choice(MEETINGS).format(**names),
        rng.choice(TELLINGS).format(told=rng.choice(facts.problem.told), **names),
        rng.choice(facts.question.told),
    ]
    others = [name for name in NAMES if name != facts.name]
    for template in rng.sample(DISTRACTORS, rng.randint(2, 4)):
        sentence = template.format(relation=rng.choice(RELATIONS), name=rng.choice(others))
        body.insert(rng.randint(0, len(body)), sentence)
    title = rng.choice(TITLES).format(**names)
    return f"SUBREDDIT: r/{rng.choice(SUBREDDITS)}\n\nTITLE: {title}\n\nPOST: {' '.join(body)}\n\nTL;DR:"


def _summary(rng: random.Random, templates: tuple[str, ...], facts: _Facts) -> str:
    return rng.choice(templates).format(
        relation=facts.relation,
        name=facts.name,
        short=rng.choice(facts.problem.short),
        ask=rng.choice(facts.question.short),
    )


def _target(rng: random.Random, kind: str, facts: _Facts) -> str:
    if kind == "partial":
        return _summary(rng, PARTIALS, facts)
    if kind == "wordy":
        return f"{_summary(rng, SUMMARIES + PARTIALS, facts)} {rng.choice(FILLERS)}"
    if kind == "hallucinating":
        for fact in rng.sample(FACTS, rng.randint(1, 2)):
            true = getattr(facts, fact)
            facts = facts._replace(**{fact: rng.choice([v for v in getattr(_VALUES, fact) if v != true])})
    return _summary(rng, SUMMARIES, facts)
