"""Which policy is better, and when does a better score stop being one: PPO, RLOO, GRPO and DPO on the small world.

``python benchmarks/policies.py [--project runs/quickstart] [--seeds 3] [--json FILE] [--chart FILE.svg]`` takes the SFT
model, the reward model and the pairs of a finished quickstart and trains a policy by each method, once a seed, all from
the same start. The world knows the true quality of every text, so each policy's win rate against the SFT model is the
true one, with its interval, beside its distance from the start and the length of its answers. Then the leash of one
method is cut step by step: the reward model's score goes on rising while the truth falls.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from command import Arguments
from environment import Mistake
from results import table

METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"steps": 60, "learning_rate": 3e-4, "batch": 16, "n": 4, "repeats": 4, "beta": 0.15},
    "rloo": {"steps": 60, "learning_rate": 2e-4, "batch": 16, "n": 4, "repeats": 1, "beta": 0.1},
    "grpo": {"steps": 60, "learning_rate": 2e-4, "batch": 8, "n": 8, "repeats": 1, "beta": 0.1},
    "dpo": {"epochs": 2.0, "learning_rate": 1e-4, "batch": 32},
}
"""What each method is given; the online ones see the same number of answers."""

LEASH = {"method": "rloo", "betas": (0.3, 0.1, 0.03, 0.0), "steps": 150, "learning_rate": 4e-4}
COLOURS = {"ppo": "#3b6ea5", "rloo": "#4a8c5f", "grpo": "#b0603f", "dpo": "#7a6aa0"}
TOKENS, WINDOW = 48, 256


class World(NamedTuple):
    """What all policies start from and are tested on."""

    sft: Any
    reward: Any
    train: list[Any]
    test: list[Any]
    pairs: list[Any]
    base: list[str]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        Mistake: something in it does not exist or cannot be had.
    """
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path("runs/quickstart"), help="a finished quickstart")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each method (default: 3)")
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS), help="all when missing")
    parser.add_argument("--no-leash", action="store_true", help="leave out over-optimisation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw both figures")
    read = parser.parse_args(given)
    for needed in ("train/sft/model", "train/reward/model", "curate/pairs.jsonl"):
        if not (read.project / needed).exists():
            raise Mistake(f"{read.project} has no {needed}; run `make quickstart` first, or pass --project.")
    if read.seeds < 1:
        raise Mistake(f"--seeds is {read.seeds}; it has to be at least 1.")
    return read


def world(project: Path) -> World:
    """Read models, prompts and pairs of a finished quickstart."""
    from tiebreak.models.load import load_causal, load_reward
    from tiebreak.run.folder import read_json, read_pairs
    from tiebreak.store import Ledger

    sft, reward = load_causal(project / "train/sft/model"), load_reward(project / "train/reward/model")
    manifest = read_json(project / "import" / "manifest.json")
    with Ledger(str(project / "ledger.db")) as ledger:
        prompts = {
            name: ledger.prompts(ledger.get_set(f"{manifest['key']}/prompts/{name}")) for name in ("train", "test")
        }
        pairs = _examples(ledger, sft.tokenizer, read_pairs(project / "curate" / "pairs.jsonl"))
    base = answers(sft, prompts["test"])
    return World(sft, reward, prompts["train"], prompts["test"], pairs, base)


def _examples(ledger: Any, tokenizer: Any, pairs: Sequence[Any]) -> list[Any]:
    from tiebreak.models.encode import encode_tree
    from tiebreak.train.rows import Example

    prompts = {p.id: p for p in ledger.prompts(sorted({pair.prompt_id for pair in pairs}))}
    ids = sorted({side for pair in pairs for side in (pair.chosen_id, pair.rejected_id)})
    texts = {response.id: response for response in ledger.responses(ids)}
    found = []
    for pair in pairs:
        sides = [texts[pair.chosen_id], texts[pair.rejected_id]]
        tree, _ = encode_tree(tokenizer, prompts[pair.prompt_id], sides, window=WINDOW)
        if tree is not None and pair.p > 0.5 and tree.branches[0] != tree.branches[1]:
            found.append(Example(tree, pair.p))
    return found


def answers(loaded: Any, prompts: Sequence[Any]) -> list[str]:
    """Answer the test prompts once each at temperature 1."""
    from tiebreak.models.generate import generate

    tokenizer = loaded.tokenizer
    drawn = generate(
        loaded.model,
        [one.ids for one in asked(loaded, prompts)],
        [prompt.id for prompt in prompts],
        max_new_tokens=TOKENS,
        seed=7,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )
    return [tokenizer.decode(list(one.ids)) for (one,) in drawn]


def asked(loaded: Any, prompts: Sequence[Any]) -> list[Any]:
    """Return the prompts with their token ids."""
    from tiebreak.models.encode import encode_prompt
    from tiebreak.train.rollouts import Asked

    return [Asked(p, encode_prompt(loaded.tokenizer, p, room=WINDOW - TOKENS).ids) for p in prompts]


def train(here: World, method: str, seed: int, how: Mapping[str, Any], log_every: int) -> dict[str, Any]:
    """Train one policy and measure it: curves of the training, and the truth at its end."""
    loaded = here.sft._replace(model=copy.deepcopy(here.sft.model))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        curve = _online(here, loaded, method, seed, how, Path(folder), log_every) if "n" in how else []
        if not curve:
            _offline(here, loaded, method, seed, how, Path(folder))
    return {"seed": seed, "seconds": time.monotonic() - started, "curve": curve, **measured(here, loaded)}


def _online(
    here: World, loaded: Any, method: str, seed: int, how: Mapping[str, Any], folder: Path, log_every: int
) -> list[dict[str, float]]:
    from tiebreak.models.load import Loaded, to_reward
    from tiebreak.rewards.combine import Rewards, read_terms
    from tiebreak.train.methods import METHODS as ROWS
    from tiebreak.train.offline import Pace, Watch
    from tiebreak.train.online import learn
    from tiebreak.train.policy_gradient.advantages import LEARNS_VALUES
    from tiebreak.train.rollouts import Rollout
    from tiebreak.train.track import read_track

    knobs = {**(ROWS[method].knobs or {}), "beta": how["beta"]}
    critic = to_reward(here.reward.model, here.reward.tokenizer, seed=seed)
    # The truth has no weight: it is watched and not learned from.
    written = [{"model": {"model": "reward", "window": WINDOW}}, {"rule": {"rule": "world", "weight": 0}}]
    scorer = Loaded(here.reward.model, here.reward.tokenizer)
    prompts = asked(loaded, here.train)
    learn(
        loaded.model,
        loaded.tokenizer,
        prompts,
        Rewards(read_terms(written, where="reward", model=lambda _: scorer, seed=seed)),
        knobs,
        Pace(
            epochs=how["steps"] * how["batch"] / len(prompts),
            batch=how["batch"],
            learning_rate=how["learning_rate"],
            decay="linear",
        ),
        Rollout(n=how["n"], repeats=how["repeats"], max_new_tokens=TOKENS),
        seed=seed,
        folder=folder,
        critic=critic if knobs["advantage"] in LEARNS_VALUES else None,
        watch=Watch(log_every=log_every, checkpoint_every=10**6),
    )
    return read_track(folder / "metrics.jsonl")


def _offline(here: World, loaded: Any, method: str, seed: int, how: Mapping[str, Any], folder: Path) -> None:
    from tiebreak.train.methods import METHODS as ROWS
    from tiebreak.train.offline import Pace, fit

    pace = Pace(epochs=how["epochs"], batch=how["batch"], learning_rate=how["learning_rate"])
    fit(loaded.model, here.pairs, ROWS[method].knobs or {}, pace, seed=seed, folder=folder)


def measured(here: World, loaded: Any) -> dict[str, Any]:
    """Return the true win rate against the start with its interval, true quality, KL and length of the answers."""
    from tiebreak.data.world import quality
    from tiebreak.stats.intervals import rate

    ours = answers(loaded, here.test)
    worth = [(quality(p, a), quality(p, b)) for p, a, b in zip(here.test, ours, here.base, strict=True)]
    won = rate([0.5 if a == b else float(a > b) for a, b in worth], [p.group for p in here.test])
    return {
        "win": {"value": won.value, "low": won.low, "high": won.high, "n": won.n},
        "quality": fmean(a for a, _ in worth),
        "start": fmean(b for _, b in worth),
        "score": fmean(scored(here, ours)),
        "kl": distance(here, loaded, ours),
        "words": fmean(len(text.split()) for text in ours),
    }


def scored(here: World, texts: Sequence[str]) -> list[float]:
    """Return the reward model's score of each answer."""
    from tiebreak.models.score import score
    from tiebreak.records import Response

    rows = [(p, [Response(prompt_id=p.id, text=text)]) for p, text in zip(here.test, texts, strict=True)]
    return [found[0] for found in score(here.reward, rows, window=WINDOW) if found is not None]


def distance(here: World, loaded: Any, texts: Sequence[str]) -> float:
    """Return the mean log-ratio of the answers to the start, in nats an answer: KL(policy || start)."""
    from tiebreak.models.encode import encode_tree
    from tiebreak.records import Response
    from tiebreak.train.learner import Learner
    from tiebreak.train.pace import Pace
    from tiebreak.train.rows import Example

    rows = []
    for prompt, text in zip(here.test, texts, strict=True):
        tree, _ = encode_tree(loaded.tokenizer, prompt, [Response(prompt_id=prompt.id, text=text)], window=WINDOW)
        if tree is not None:
            rows.append(Example(tree))
    learner = Learner(loaded.model, {"score": ""}, Pace(), reference=copy.deepcopy(here.sft.model))
    with learner.ready():
        gap = learner.values(rows) - learner.values(rows, model=learner.reference)
    return float(gap.mean())


def run(read: argparse.Namespace) -> dict[str, Any]:
    """Train everything; say what is under way on standard error."""
    import torch

    torch.set_num_threads(1)
    here = world(read.project)
    found: dict[str, Any] = {"methods": {}, "leash": {}}
    for method in read.method:
        print(f"{method}: {read.seeds} seeds ...", file=sys.stderr)
        found["methods"][method] = [
            train(here, method, seed, METHODS[method], log_every=10) for seed in range(1, read.seeds + 1)
        ]
    for beta in () if read.no_leash else LEASH["betas"]:
        print(f"{LEASH['method']} at beta {beta:g} ...", file=sys.stderr)
        how = {**METHODS[LEASH["method"]], **LEASH, "beta": beta}
        found["leash"][f"{beta:g}"] = train(here, LEASH["method"], 1, how, log_every=5)
    return found


def report(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables as lines."""
    heads = ("true win rate against SFT (95 %)", "KL, nats", "score", "true quality", "words", "time")
    rows = [(method, str(one["seed"]), *_cells(one)) for method, runs in found["methods"].items() for one in runs]
    yield from table(("method", "seed", *heads), rows)
    if found["leash"]:
        yield ""
        rows = [(LEASH["method"], beta, *_cells(one)) for beta, one in found["leash"].items()]
        yield from table(("method", "beta", *heads), rows)


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = f"{one['kl']:.1f}", f"{one['score']:+.2f}", f"{one['quality']:.2f}", f"{one['words']:.1f}"
    return (_won(one), *numbers, f"{one['seconds']:.0f} s")


def _won(one: Mapping[str, Any]) -> str:
    win = one["win"]
    return f"{100 * win['value']:.1f} % ({100 * win['low']:.1f}-{100 * win['high']:.1f})"


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Draw win rates with their intervals, and score and truth over the distance from the start."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tiebreak", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    columns = 1 + bool(found["leash"])
    figure, panels = pyplot.subplots(1, columns, figsize=(4.6 * columns, 3.4), layout="constrained", squeeze=False)
    _wins(panels[0][0], found["methods"])
    if found["leash"]:
        _leash(panels[0][1], found["leash"])
    figure.savefig(file, format="svg", metadata={"Date": None})


def _wins(panel: Any, methods: Mapping[str, Any]) -> None:
    for place, (method, runs) in enumerate(methods.items()):
        for one in runs:
            win, x = one["win"], place + 0.18 * (one["seed"] - (len(runs) + 1) / 2)
            panel.plot([x, x], [100 * win["low"], 100 * win["high"]], color=COLOURS[method], lw=2)
            panel.plot([x], [100 * win["value"]], "o", color=COLOURS[method], ms=5)
    panel.axhline(50, color="#999999", lw=0.8, ls="--")
    panel.set_xticks(range(len(methods)), [name.upper() for name in methods])
    panel.set_ylabel("true win rate against SFT, %")
    panel.set_title("A dot is a training, its bar the 95 % interval", fontsize=9)


def _leash(panel: Any, leash: Mapping[str, Any]) -> None:
    """Only the longest leash: its score rises, the truth turns down."""
    beta, one = min(leash.items(), key=lambda item: float(item[0]))
    rows = sorted(one["curve"], key=lambda row: row["objective/kl"])
    distance = [row["objective/kl"] for row in rows]
    for key, colour, label in (
        ("rewards/model", "#b0603f", "reward model's score"),
        ("rewards/rule", "#3b6ea5", "true quality"),
    ):
        panel.plot(distance, [row[key] for row in rows], "o-", color=colour, ms=3, lw=1, label=label)
    panel.set_xlabel("distance from the start (KL, nats an answer)")
    panel.set_title(f"Without a leash (beta {beta}) the score stops telling the truth", fontsize=9)
    panel.legend(frameon=False)


def main(given: Sequence[str] | None = None) -> int:
    """Run from the command line; a mistake is one sentence."""
    try:
        read = arguments(given)
        found = run(read)
    except Mistake as mistake:
        print(f"policies.py: {mistake}", file=sys.stderr)
        return 1
    print("\n".join(report(found)))
    if read.json:
        read.json.write_text(json.dumps(found, indent=2) + "\n")
    if read.chart:
        draw(found, read.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
