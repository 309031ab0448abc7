"""What an objective costs: a step of each, between two steps of plain DPO on the same batch and the same model.

``python benchmarks/objectives.py [--quick] [--only NAME ...] [--json FILE]`` takes every row of the
objectives table in turn. Model, rows, precision and threads are those of ``train.py --task dpo``; log-probs of the
reference are cached on both sides. A step is divided by the mean of the two DPO steps around it, so what a busy machine
does to all of them cancels; DPO between two of itself shows what is left. What an objective does besides the model does
not depend on the model, so it is measured a second time without one, where it can be told in hundredths of a
millisecond.

Tokens are equal: a list has the two answers of a pair, and a row that stands alone one answer as long as both. What has
to be more by definition is named: another branch, the whole vocabulary of a second model, a reference in the step.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from command import Arguments, carry_out, keep, one_of
from environment import Mistake, run_environment
from results import table

MODELS = ("gpt2", "llama", "tiny")
PAIRS, SEED, SHAPE = 4, 1, "tldr"
ROUNDS = {"full": 12, "quick": 3}
BARE, WARM = 100, 5
"""Steps without a model, each about a millisecond, and those before that are not timed."""

WHOLE_VOCABULARY = ("token_kl", "extrapolated", "collision")
BESIDE = ("rationale", "drawn", "mismatched")

PLAIN: dict[str, dict[str, Any]] = {
    "dpo": {"score": "log_ratio", "link": "logistic", "beta": 0.1},
    "bradley_terry": {"score": "head", "link": "logistic"},
}
"""What others are measured beside; a reward head is beside a reward head."""


class Entry(NamedTuple):
    """One row of the table, what it is measured against, and what of it is more, or less, by definition."""

    name: str
    knobs: Mapping[str, Any]
    against: str = "dpo"
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    unpaired: bool = False


class Step(NamedTuple):
    """One step: seconds on the wall and of the processor, and positions through bodies."""

    wall: float
    processor: float
    tokens: int


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        Mistake: something in it does not exist or cannot be had.
    """
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{ROUNDS['quick']} rounds instead of {ROUNDS['full']}")
    parser.add_argument("--rounds", type=int, help="timed steps of each objective")
    parser.add_argument("--model", default="gpt2", help="gpt2 (default), llama or tiny")
    parser.add_argument("--precision", default="bfloat16", help="bfloat16 (default) or float32")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some objectives only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    read = parser.parse_args(given)
    one_of("model", read.model, MODELS)
    one_of("precision", read.precision, ("bfloat16", "float32"))
    if read.rounds is not None and read.rounds < 1:
        raise Mistake(f"--rounds is {read.rounds}; at least one step has to be timed.")
    read.rounds = read.rounds or ROUNDS["quick" if read.quick else "full"]
    if read.json and not read.json.absolute().parent.is_dir():
        raise Mistake(f"{read.json} cannot be written, for {read.json.parent} is not a folder.")
    if importlib.util.find_spec("torch") is None:
        raise Mistake("Training needs torch, which is not installed; pip install 'tiebreak[train]' brings it.")
    for name in read.only:
        one_of("objective", name, [entry.name for entry in entries()])
    return read


def entries() -> list[Entry]:
    """Return DPO itself and every objective of preferences, one of them also with each answer in a row of its own."""
    from tiebreak.train.objectives.presets import OBJECTIVES, PACES
    from tiebreak.train.objectives.switches import settled

    found = []
    for row in OBJECTIVES:
        knobs = settled(row.knobs)
        if knobs["score"] == "head":
            found.append(Entry(row.name, knobs, "bradley_terry", less=("a reward head",)))
        elif knobs["score"]:
            found.append(Entry(row.name, knobs, "dpo", *_differs(knobs, PACES[row.name])))
    one = next(entry for entry in found if entry.name == "apo_zero_unpaired")
    twice = f"{one.name}, each answer behind its own prompt"
    return [*found, one._replace(name=twice, more=("each prompt twice",), unpaired=True)]


def _differs(knobs: Mapping[str, Any], pace: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what an objective needs more than DPO by definition, and what less."""
    from tiebreak.train.objectives.switches import needs_of, parts_of

    reads = {name for part in parts_of(knobs).values() for name in part.reads}
    more = [f"reads {name}" for name in WHOLE_VOCABULARY if name in reads]
    more += [f"a branch {role}" for role in BESIDE if role in needs_of(knobs)]
    if pace.get("reference", {}).get("compute") == "step":
        more.append("the reference in the step")
    return tuple(more), () if "reference" in reads else ("no reference",)


def examples(entry: Entry, pairs: Sequence[Any]) -> list[Any]:
    """Return ``pairs`` as rows of the shape that the objective takes, with all that it reads of them."""
    from tiebreak.models.forest import Tree
    from tiebreak.train.objectives.switches import kind_of, needs_of
    from tiebreak.train.rows import Example, mismatched

    kind, needs = kind_of(entry.knobs["link"]), needs_of(entry.knobs)
    if kind == "alone":
        both = [
            ((row.chosen,), (row.rejected,)) if entry.unpaired else ((row.chosen + row.rejected,),) for row in pairs
        ]
        trees = [Tree(row.prompt, answers) for row, found in zip(pairs, both, strict=True) for answers in found]
        rows = [Example(tree, grades=(float(number % 2 == 0),)) for number, tree in enumerate(trees)]
        return mismatched(rows, None, SEED) if "mismatched" in needs else rows
    trees = [Tree(row.prompt, (row.chosen, row.rejected)) for row in pairs]
    if kind == "list" or "grades" in needs:
        return [Example(tree, grades=(0.8, 0.2)) for tree in trees]
    roles = tuple(role for role in BESIDE if role in needs)
    return [Example(_with(tree, roles), p=0.8, margin=0.7, beside=roles) for tree in trees]


def _with(tree: Any, roles: Sequence[str]) -> Any:
    """Put a branch as long as the chosen side beside it; a rationale reads both sides first, unlearned."""
    branches, taught = list(tree.branches), [(True,) * len(branch) for branch in tree.branches]
    for role in roles:
        read = branches[0] + branches[1] if role == "rationale" else ()
        branches.append(read + tree.branches[0][::-1])
        taught.append((False,) * len(read) + (True,) * len(tree.branches[0]))
    return tree._replace(branches=tuple(branches), taught=tuple(taught) if "rationale" in roles else ())


class Bench:
    """One model in training with its reference; every objective takes its steps on it, by the same optimizer."""

    def __init__(self, method: str, model: str, precision: str) -> None:
        from positions import Positions
        from workload import RATES, build

        from tiebreak.train.objectives.switches import settled
        from tiebreak.train.pace import Pace
        from tiebreak.train.update import Compute

        task = {"dpo": "dpo", "bradley_terry": "reward"}[method]
        self.model = build(model, task, seed=SEED, device="cpu")
        self.reference = build(model, task, seed=SEED + 1, device="cpu").eval() if task == "dpo" else None
        self.pace = Pace(batch=PAIRS, learning_rate=RATES[task], warmup=0.0, decay="constant")
        self.compute = Compute(precision=precision, checkpointing=False, tokens=None)
        self.learners: dict[str, Any] = {}
        self.plain = Entry(method, settled(PLAIN[method]))
        self.optimizer = self.learner(self.plain).optimizer
        named = {"policy": self.model} | ({"reference": self.reference} if self.reference is not None else {})
        self.counted = Positions(named).body
        self.total, self.done = 10**6, 10**6 // 2  # in the middle, where objectives that wait for that are at work
        self.cached: dict[Any, Any] = {}

    def learner(self, entry: Entry) -> Any:
        """Return what takes the steps of ``entry``: its own loss, and the model and optimizer that all share."""
        from tiebreak.train.learner import Learner

        if entry.name not in self.learners:
            made = Learner(self.model, entry.knobs, self.pace, self.compute, reference=self.reference)
            if self.learners:
                made.optimizer = self.optimizer
            self.learners[entry.name] = made
        return self.learners[entry.name]

    def step(self, entry: Entry, pairs: Sequence[Any]) -> Step:
        """Take one step on ``pairs``; log-probs of the reference are made before the stopwatch starts."""
        learner, rows = self.learner(entry), examples(entry, pairs)
        known = None
        if learner.compares and "the reference in the step" not in entry.more:
            key = (tuple(row.tree for row in rows), learner.readings_of_both)
            if key not in self.cached:
                self.cached[key] = learner.reference_logps(rows)
            known = self.cached[key]
        before, began, worked = sum(self.counted.values()), time.perf_counter(), time.process_time()
        learner.step(rows, self.done, self.total, references=known)
        spent = time.perf_counter() - began, time.process_time() - worked
        self.done += 1
        return Step(*spent, sum(self.counted.values()) - before)

    def round(self, some: Sequence[Entry], pairs: Sequence[Any]) -> Iterator[tuple[Entry, Step, Step]]:
        """Yield for each objective its step and the mean of the two plain ones around it."""
        self.cached.clear()
        with self.learners[self.plain.name].ready():
            before = self.step(self.plain, pairs)
            for entry in some:
                own, after = self.step(entry, pairs), self.step(self.plain, pairs)
                around = Step((before.wall + after.wall) / 2, (before.processor + after.processor) / 2, after.tokens)
                yield entry, own, around
                before = after

    def bare(self, entry: Entry, pairs: Sequence[Any]) -> list[float]:
        """Return seconds that steps without a model take more than plain ones: the objective and all that is around."""
        sides = [_without_model(self.learner(one), examples(one, pairs)) for one in (entry, self.plain)]
        found = []
        for number in range(-WARM, BARE):
            turns = number % 2, 1 - number % 2  # whoever is second finds caches warm
            began = time.perf_counter()
            sides[turns[0]]()
            between = time.perf_counter()
            sides[turns[1]]()
            gap = (between - began) - (time.perf_counter() - between)
            if number >= 0:
                found.append(gap if turns[0] == 0 else -gap)
        return found


def _without_model(learner: Any, rows: Sequence[Any]) -> Callable[[], Any]:
    """Return a step of ``learner`` up to its gradient, in which the model gives the same numbers at no cost."""
    import torch

    from tiebreak.train.learner import Learner

    class Bare(Learner):
        def _look(self, some: Any, model: Any, readings: Any) -> Any:
            return values

    def numbers(columns: int) -> Any:
        drawn = torch.randn(sum(row.values for row in rows), columns, generator=source)
        return (100 + drawn).neg().squeeze(1)

    source = torch.Generator().manual_seed(SEED)
    values = numbers(1 + len(learner.readings)).requires_grad_()
    flat, starts = numbers(1 + len(learner.readings_of_both)), [row.values for row in rows]
    known = torch.nn.utils.rnn.pad_sequence(flat.split(starts), batch_first=True) if learner.compares else None
    bare = Bare(learner.model, learner.knobs, learner.pace, learner.compute)

    def step() -> dict[str, float]:
        outcome, _ = bare._learn_from(rows, known)
        return {name: float(value) for name, value in {"loss": outcome.loss, **outcome.metrics}.items()}

    return step


def measured(
    benches: Mapping[str, Bench], chosen: Sequence[Entry], rounds: int, pairs: Sequence[Any]
) -> Iterator[dict[str, list[Any]]]:
    """Yield after each round, and once in the warm-up, the steps of each objective so far with those around them."""
    found: dict[str, list[Any]] = {entry.name: [] for entry in chosen}
    mixed = random.Random(SEED)
    for number in range(rounds + 1):
        batch = pairs[number * PAIRS : (number + 1) * PAIRS]
        for method, bench in benches.items():
            some = [entry for entry in chosen if entry.against == method]
            if number == 0:
                some = [entry for entry in some if entry.more] or some[:2]  # these need the most memory
            mixed.shuffle(some)
            for entry, own, around in bench.round(some, batch):
                if number:
                    found[entry.name].append((own, around))
                text = f"{own.wall:.2f} s, {own.wall / around.wall:.3f} of plain"
                print(f"round {number}/{rounds}: {entry.name} {text}{'' if number else ' (warm-up)'}", flush=True)
        yield found


def summed(found: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Return medians of per-step ratios with their intervals, of tokens too, and the seconds of plain steps."""
    return {
        name: {
            "wall": middle([own.wall / around.wall for own, around in steps]),
            "processor": middle([own.processor / around.processor for own, around in steps]),
            "tokens": median(own.tokens / around.tokens for own, around in steps),
            "plain_seconds": median(around.wall for _, around in steps),
        }
        for name, steps in found.items()
        if steps
    }


def middle(each: Sequence[float]) -> dict[str, Any]:
    """Return the median with its bootstrap interval."""
    import numpy as np

    from tiebreak.stats.intervals import as_dict, bootstrap

    return as_dict(bootstrap(np.array(each), None, lambda x: float(np.median(x)))) | {"each": list(each)}


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on, and how busy it was a moment ago."""
    import torch
    from measure import _processor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    who = {"processor": _processor(), "cores": cores, "threads": torch.get_num_threads(), "load": load}
    return who | {"torch": torch.__version__}


def run(read: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return it; what is there so far is written after every round."""
    from transformers.utils import logging
    from workload import draw as drawn

    logging.set_verbosity_error()
    began = time.monotonic()
    chosen = [entry for entry in entries() if not read.only or entry.name in ("dpo", *read.only)]
    settings = {"model": read.model, "shape": SHAPE, "precision": read.precision, "pairs": PAIRS, "seed": SEED}
    result: dict[str, Any] = {"settings": settings | {"rounds": read.rounds}, "machine": machine()}
    result["more"] = {entry.name: list(entry.more) for entry in chosen}
    result["says"] = {entry.name: ", ".join((*entry.more, *entry.less)) for entry in chosen}
    pairs = drawn(SHAPE, PAIRS * (read.rounds + 1), model=read.model, seed=SEED)
    methods = dict.fromkeys(entry.against for entry in chosen)
    benches = {method: Bench(method, read.model, read.precision) for method in methods}
    result["bare"] = {one.name: middle(benches[one.against].bare(one, pairs[:PAIRS])) for one in chosen}
    for found in measured(benches, chosen, read.rounds, pairs):
        result["steps"] = summed(found)
        keep(result, read.json, began)
    result["machine"]["load_after"] = machine()["load"]
    keep(result, read.json, began)
    return result


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the terminal's report, the dearest first, and the dearest that needs nothing more last."""
    steps, bare = result["steps"], result["bare"]
    order = sorted(steps, key=lambda name: -steps[name]["wall"]["value"])
    rows = [(name, result["says"][name], *_cells(steps[name]), _bare(bare[name])) for name in order]
    heads = ("objective", "by definition", "a step", "95 % interval", "n", "processor", "tokens", "without model, ms")
    yield from table(heads, rows)
    yield "A step: median of steps over the mean of the two plain ones around each, on the clock and in processor time."
    yield "The last column is what a step takes more than a plain one where the model costs nothing. mapl_intra is"
    yield "beside bradley_terry, all others beside dpo, which is also beside itself."
    yield ""
    equal = [name for name in order if not result["more"][name] and name != "dpo"]
    if equal:
        for clock, what in (("wall", "on the clock"), ("processor", "in processor time")):
            one = max(equal, key=lambda name: steps[name][clock]["value"])
            each = middle([ratio for name in equal for ratio in steps[name][clock]["each"]])
            most = _over(steps[one][clock])
            yield f"Largest overhead of the {len(equal)} that need nothing more, {what}: {one}, {most}."
            yield f"All {len(equal)} together, {what}: {_over(each)}; dpo beside itself: {_over(steps['dpo'][clock])}."
        dear = max(equal, key=lambda name: bare[name]["value"])
        spent, whole = bare[dear]["value"], median(one["plain_seconds"] for one in steps.values())
        yield f"Without the model {dear} costs most, {1000 * spent:.2f} ms: {spent / whole:+.3%} of {whole:.2f} s."


def _over(one: Mapping[str, Any]) -> str:
    ends = "" if one["low"] is None else f" [{one['low'] - 1:+.1%}, {one['high'] - 1:+.1%}]"
    return f"{one['value'] - 1:+.1%}{ends}"


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    wall = one["wall"]
    ends = "" if wall["low"] is None else f"{wall['low']:.3f} to {wall['high']:.3f}"
    return f"{wall['value']:.3f}", ends, f"{wall['n']}", f"{one['processor']['value']:.3f}", f"{one['tokens']:.2f}"


def _bare(one: Mapping[str, Any]) -> str:
    return f"{1000 * one['value']:+.2f} ({1000 * one['low']:+.2f} to {1000 * one['high']:+.2f})"


def main(given: Sequence[str] | None = None) -> int:
    """Run from the command line, in a process that keeps freed memory, see :func:`environment.run_environment`."""
    kept = run_environment(retain_heap=True)
    if os.environ.get("MALLOC_MMAP_MAX_") != kept["MALLOC_MMAP_MAX_"]:
        words = sys.argv[1:] if given is None else given
        return subprocess.run([sys.executable, __file__, *words], env=kept, check=False).returncode
    return carry_out(given, arguments, run, report)


if __name__ == "__main__":
    sys.exit(main())
