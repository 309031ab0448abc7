"""Does a preference model that can hold cycles predict real ones better: Bradley-Terry against skew embeddings.

``python benchmarks/cycles.py [--data FOLDER] [--json FILE]`` takes the votes of UKPConvArg1, in which people said which
of two arguments is more convincing, and fits each topic's arguments twice: with a free score each (Bradley-Terry), and
with a free vector each, compared as the general preference model compares its embeddings. Targets are shares of votes.
Both are penalised by the squares of their numbers; how strongly, and how many numbers a vector has, is chosen by
log-loss on inner folds of the pairs that are learned from. What is reported is of pairs that were held out. Skew
embeddings whose second numbers are all 1 are Bradley-Terry, so they are fitted once more with a penalty on how far they
are from that (``skew_near``).

Some cycles are real and some are chance, for a pair has five votes. How many chance alone would make is counted in
votes drawn from a Bradley-Terry model of the same data. And that the fits could find cycles on these pairs is shown on
votes drawn from items on a circle, each of which beats the half that lies ahead of it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from command import Arguments, carry_out, keep
from environment import ROOT, Mistake
from results import table

DATA = ROOT.parent / "shared" / "data" / "ukpconvarg1"
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Strengths of the penalty: ridge / 2 times the sum of squares, beside the sum over pairs of the log-loss."""
NEAR = (1.0, 3.0, 10.0, 30.0)
"""Strengths of the penalty on the distance of second numbers from 1."""
CIRCLE = 2.0
"""The largest logit of the votes drawn from items on a circle."""
STEPS, RATE, START = 300, 0.1, 0.5
"""Of Adam, the rate falling to 0 along a cosine, and the spread of the numbers it begins with."""
LEAST = 1e-3
"""Penalty of the Bradley-Terry model that votes are drawn from: next to none, and every score is finite."""


class Setting(NamedTuple):
    """Numbers an item has, 1 for Bradley-Terry; the penalty; and that on second numbers' distance from 1, if any."""

    width: int
    ridge: float
    near: float | None = None


MODELS: dict[str, list[Setting]] = {
    "bradley_terry": [Setting(1, ridge) for ridge in RIDGES],
    "skew": [Setting(width, ridge) for width in (2, 4, 8) for ridge in RIDGES],
    "skew_near": [Setting(2, ridge, near) for ridge in RIDGES[:3] for near in NEAR],
}
"""What each model is chosen from."""
CONTROLS = {"bradley_terry": Setting(1, 0.1), "skew": Setting(2, 0.3)}
"""What is fitted to the circle, where nothing is chosen."""


class Votes(NamedTuple):
    """P pairs of N items, as arrays (P,): topic, both items, votes for the first, for the second, and for neither."""

    topic: Any
    first: Any
    second: Any
    wins: Any
    losses: Any
    ties: Any
    topics: tuple[str, ...]
    items: int

    @property
    def share(self) -> Any:
        """The first side's share of the votes, (P,); a vote for neither is half a vote for each."""
        return (self.wins + self.ties / 2) / (self.wins + self.losses + self.ties)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        Mistake: something in it does not exist or cannot be had.
    """
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of ukpconvarg1, with crowd_votes.tsv")
    parser.add_argument("--folds", type=int, default=5, help="folds of pairs (default: 5)")
    parser.add_argument("--draws", type=int, default=200, help="sets of votes drawn to count cycles by chance")
    parser.add_argument("--seed", type=int, default=1, help="of folds, starts and drawn votes (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    read = parser.parse_args(given)
    if read.folds < 3:
        raise Mistake(f"--folds is {read.folds}; one is held out, one is inner, and some have to be learned from: 3.")
    if read.draws < 1:
        raise Mistake(f"--draws is {read.draws}; it has to be at least 1.")
    if not (read.data / "crowd_votes.tsv").is_file():
        raise Mistake(f"There are no votes at {read.data}; name the folder of ukpconvarg1 in --data.")
    if read.json and not read.json.absolute().parent.is_dir():
        raise Mistake(f"{read.json} cannot be written, for {read.json.parent} is not a folder.")
    if importlib.util.find_spec("torch") is None:
        raise Mistake("Fitting needs torch, which is not installed; pip install 'tiebreak[train]' brings it.")
    return read


def read_votes(file: Path) -> Votes:
    """Return the votes of a tab-separated file with columns topic, pair_id (first_second) and vote (a1, a2, equal)."""
    import numpy as np

    counts: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            counts[row["topic"], *row["pair_id"].split("_")][row["vote"]] += 1
    topics = sorted({topic for topic, *_ in counts})
    items = {item: n for n, item in enumerate(sorted({(t, i) for t, *both in counts for i in both}))}
    codes = [(topics.index(t), items[t, a], items[t, b]) for t, a, b in counts]
    cast = [[found[vote] for found in counts.values()] for vote in ("a1", "a2", "equal")]
    return Votes(*np.array(codes).T, *np.array(cast), topics=tuple(topics), items=len(items))


class Cycles(NamedTuple):
    """Triangles whose three pairs all have a majority, how many of them are cycles, and which pairs lie in one (P,)."""

    triangles: int
    cyclic: int
    inside: Any


def cycles(first: Any, second: Any, gap: Any, items: int) -> Cycles:
    """Count the 3-cycles of the graph in which an arrow goes from the winner of a pair to the loser.

    ``gap`` (P,) is above 0 where the first side wins, below where the second does, and 0 where nobody wins.
    """
    import numpy as np

    beats = np.zeros((items, items))
    beats[first[gap > 0], second[gap > 0]] = 1
    beats[second[gap < 0], first[gap < 0]] = 1
    met = beats + beats.T
    back = beats * (beats @ beats).T  # of the arrow i -> j: how many k there are with j -> k -> i
    inside = (back + back.T)[first, second] > 0
    return Cycles(round(float((met * (met @ met)).sum()) / 6), round(float(back.sum()) / 3), inside & (gap != 0))


def fit(first: Any, second: Any, share: Any, mass: Any, *, items: int, setting: Setting, seed: int = 0) -> Any:
    """Fit the items F times, each time with other weights of the pairs, by the objectives of the table.

    Args:
        first: items (P,).
        second: items (P,).
        share: P(first wins), the target, (P,).
        mass: how much a pair counts in each fit, (F, P); 0 holds it out.
        items: N.
        setting: the model and its penalty.
        seed: draws where it begins.

    Returns:
        The logits that the first side wins, (F, P).
    """
    import numpy as np
    import torch

    from tiebreak.train.objectives.scores import COMPARES
    from tiebreak.train.objectives.seen import Seen, Whole
    from tiebreak.train.objectives.switches import objective

    fits, width = len(mass), setting.width
    how: dict[str, Any] = {"score": "head", "link": "logistic", "target": "soft"}
    how |= {"compare": "skew", "skew_tau": 1.0} if width > 1 else {"compare": "difference"}
    shift = items * np.arange(fits)[:, None]
    sides = {"chosen": torch.tensor((first + shift).flatten()), "rejected": torch.tensor((second + shift).flatten())}
    source = torch.Generator().manual_seed(seed)
    start = START * torch.randn(items, width, generator=source, dtype=torch.float64)
    aim, ridge = torch.zeros(width, dtype=torch.float64), torch.full((width,), setting.ridge, dtype=torch.float64)
    if setting.near is not None:
        aim[1::2], ridge[1::2] = 1.0, setting.near
    free = (start + aim).repeat(fits, 1).requires_grad_()
    ones = torch.ones(len(free), dtype=torch.float64)
    told = {"p": torch.tensor(np.tile(share, fits)), "share": torch.tensor(mass.flatten(), dtype=torch.float64)}
    optimizer = torch.optim.Adam([free], lr=RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        scores = free.squeeze(1)  # one number a branch is (B,)
        seen = Seen(lengths=ones, weight=ones, scores=scores, whole=Whole(1.0, 1.0), **sides, **told)
        (objective(seen, **how).loss + (ridge / 2 * (free - aim).square()).sum()).backward()
        optimizer.step()
        falling.step()
    with torch.no_grad():
        compared = COMPARES[how["compare"]](*(free.squeeze(1)[side] for side in sides.values()), knobs=how)
    return compared.reshape(fits, -1).numpy()


def log_loss(logits: Any, share: Any) -> Any:
    """Return -[p log sigmoid(z) + (1 - p) log sigmoid(-z)] in nats, elementwise."""
    import numpy as np

    return np.logaddexp(0, logits) - share * logits


class HeldOut(NamedTuple):
    """Logits of each pair from a fit that did not see it (P,), and the setting chosen for each fold."""

    logits: Any
    chosen: list[Setting]


def cross_validated(votes: Votes, fold: Any, settings: Sequence[Setting], seed: int) -> HeldOut:
    """Fit without each fold in turn, by the setting with the least log-loss on its inner folds.

    The inner folds of an outer one are all others: a fit without folds f and g tells of g for f, and of f for g.
    """
    import numpy as np

    folds = int(fold.max()) + 1
    both = [(f, g) for f in range(folds) for g in range(f)] if len(settings) > 1 else []
    masks = np.array([~np.isin(fold, out) for out in (*both, *([f] for f in range(folds)))])
    inner, outer = np.zeros((len(settings), folds)), []
    for number, setting in enumerate(settings):
        logits = fit(votes.first, votes.second, votes.share, masks, items=votes.items, setting=setting, seed=seed)
        for one, (f, g) in zip(log_loss(logits, votes.share), both, strict=False):
            inner[number, f] += one[fold == g].sum()
            inner[number, g] += one[fold == f].sum()
        outer.append(logits[len(both) + fold, np.arange(len(fold))])
    best = inner.argmin(axis=0)
    return HeldOut(np.array(outer)[best[fold], np.arange(len(fold))], [settings[number] for number in best])


def on_a_circle(votes: Votes, seed: int) -> Votes:
    """Return votes of the same pairs, as many of each, in a world where every item beats the half ahead of it."""
    import numpy as np

    chance = np.random.default_rng(seed)
    place = chance.uniform(0, 2 * np.pi, votes.items)
    cast = votes.wins + votes.losses + votes.ties
    logits = CIRCLE * np.sin(place[votes.second] - place[votes.first])
    wins = chance.binomial(cast, 1 / (1 + np.exp(-logits)))
    return votes._replace(wins=wins, losses=cast - wins, ties=0 * cast)


def by_chance(votes: Votes, draws: int, seed: int) -> list[int]:
    """Return how many 3-cycles there are in ``draws`` sets of votes of a world in which every topic has one order.

    It is the Bradley-Terry model of the votes for a side. Each pair keeps its number of votes for neither.
    """
    import numpy as np

    cast = votes.wins + votes.losses
    share = np.where(cast > 0, votes.wins / np.maximum(cast, 1), 0.5)
    logits = fit(votes.first, votes.second, share, cast[None], items=votes.items, setting=Setting(1, LEAST))[0]
    chance = np.random.default_rng(seed)
    drawn = (chance.binomial(cast, 1 / (1 + np.exp(-logits))) for _ in range(draws))
    return [cycles(votes.first, votes.second, 2 * wins - cast, votes.items).cyclic for wins in drawn]


def measured(votes: Votes, models: Mapping[str, HeldOut], inside: Any) -> dict[str, Any]:
    """Return accuracy, log-loss and accuracy inside cycles of each model, and their differences to Bradley-Terry.

    Intervals are clustered by topic. A pair that nobody won has no right answer, so it counts in log-loss alone.
    """
    from tiebreak.stats.intervals import as_dict, clustered_mean, paired_difference, rate

    gap = votes.wins - votes.losses
    won = gap != 0
    right = {name: ((one.logits * gap > 0) + (one.logits == 0) / 2) for name, one in models.items()}
    lost = {name: log_loss(one.logits, votes.share) for name, one in models.items()}
    out: dict[str, Any] = {}
    for name, one in models.items():
        plain = right["bradley_terry"]
        out[name] = {
            "accuracy": as_dict(rate(right[name][won], votes.topic[won])),
            "log_loss": as_dict(clustered_mean(lost[name], votes.topic)),
            "inside": as_dict(rate(right[name][inside], votes.topic[inside])),
            "more": {
                "accuracy": as_dict(paired_difference(right[name][won], plain[won], votes.topic[won])),
                "log_loss": as_dict(paired_difference(lost[name], lost["bradley_terry"], votes.topic)),
                "inside": as_dict(paired_difference(right[name][inside], plain[inside], votes.topic[inside])),
            },
            "chosen": one.chosen,
        }
    return out


def run(read: argparse.Namespace) -> dict[str, Any]:
    """Fit, count and compare, and return it all."""
    import numpy as np

    began = time.monotonic()
    votes = read_votes(read.data / "crowd_votes.tsv")
    gap = votes.wins - votes.losses
    found = cycles(votes.first, votes.second, gap, votes.items)
    drawn = by_chance(votes, read.draws, read.seed)
    result: dict[str, Any] = {
        "settings": {"data": str(read.data), "folds": read.folds, "draws": read.draws, "seed": read.seed},
        "topics": len(votes.topics),
        "items": votes.items,
        "pairs": len(gap),
        "without_majority": int((gap == 0).sum()),
        "triangles": found.triangles,
        "cyclic": found.cyclic,
        "inside": int(found.inside.sum()),
        "by_chance": {"mean": float(np.mean(drawn)), "ends": np.quantile(drawn, [0.025, 0.975]).tolist()},
    }
    shuffled = np.random.default_rng(read.seed).permutation(len(gap))
    fold = shuffled % read.folds
    models = {}
    for name, settings in MODELS.items():
        print(f"Fitting {name}, {len(settings)} settings.", flush=True)
        models[name] = cross_validated(votes, fold, settings, read.seed)
    result["models"] = measured(votes, models, found.inside)
    circle = on_a_circle(votes, read.seed)
    models = {name: cross_validated(circle, fold, [one], read.seed) for name, one in CONTROLS.items()}
    inside = cycles(circle.first, circle.second, circle.wins - circle.losses, circle.items).inside
    result["circle"] = measured(circle, models, inside)
    keep(result, read.json, began)
    return result


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the terminal's report."""
    counts = ("topics", "items", "pairs", "without_majority", "triangles", "cyclic", "inside")
    yield ", ".join(f"{name.replace('_', ' ')} {result[name]:,}" for name in counts)
    chance = result["by_chance"]
    yield (
        f"3-cycles in votes drawn from a Bradley-Terry model: {chance['mean']:.0f} "
        f"({chance['ends'][0]:.0f} to {chance['ends'][1]:.0f} in 95 % of {result['settings']['draws']} draws)"
    )
    yield ""
    yield from _table(result["models"])
    yield "inside: accuracy on pairs in a 3-cycle. What was chosen, by fold:"
    for name, one in result["models"].items():
        chosen = (f"{width} at {ridge:g}{f' and {near:g}' if near else ''}" for width, ridge, near in one["chosen"])
        yield f"{name}: {', '.join(chosen)}"
    yield ""
    yield "On votes of the same pairs, drawn from items on a circle:"
    yield from _table(result["circle"])


def _table(models: Mapping[str, Any]) -> Iterator[str]:
    for what, form in {"accuracy": ".1%", "log_loss": ".4f", "inside": ".1%"}.items():
        rows = []
        for name, one in models.items():
            more = "" if name == "bradley_terry" else _ends(one["more"][what], f"+{form}")
            rows.append((name, _ends(one[what], form), f"{one[what]['n']:,}", more))
        yield from table((what, "value [95 % interval]", "n", "more than Bradley-Terry"), rows)
        yield ""


def _ends(one: Mapping[str, Any], form: str) -> str:
    return f"{one['value']:{form}} [{one['low']:{form}}, {one['high']:{form}}]"


def main(given: Sequence[str] | None = None) -> int:
    """Run from the command line, see :func:`command.carry_out`."""
    return carry_out(given, arguments, run, report)


if __name__ == "__main__":
    sys.exit(main())
