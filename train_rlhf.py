"""Train a policy from preferences with a handful of flags.

A thin door onto the house: each call is a recipe, kept as ``recipe.json`` in the output folder, in the words of
``tiebreak run``. The same command again redoes only what has changed, and goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tiebreak.cli import headlines, leave
from tiebreak.data import checked, sets
from tiebreak.recipe import Recipe, build_recipe
from tiebreak.records import InputError
from tiebreak.run import Ran, run
from tiebreak.run.asking import ask
from tiebreak.run.display import display
from tiebreak.stats.intervals import wilson

HOME = Path(__file__).resolve().parent / "data" / "rlhf"
PROMPTS = HOME / "prompts" / "collection_prompts.txt"
WINDOW, ANSWER = 1024, 128
"""Tokens of a prompt with its answer, and of a sampled answer, where the model has positions for so many."""

NARROW = 256
"""Width below which a model is fastest on one thread: several would mostly wait for each other."""


class Method(StrEnum):
    """What can be had by a flag; a recipe has many more methods, see ``tiebreak ls``."""

    dpo = "dpo"
    ppo = "ppo"


class Device(StrEnum):
    """Where models train; ``auto`` is the accelerator where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


def _flag(name: str, told: str) -> Any:
    return typer.Option(f"--{name}", help=told)


ModelPath = Annotated[str, _flag("model_path", "A .pth checkpoint with its tokenizer.json, or a Hugging Face model.")]
OfMethod = Annotated[Method, _flag("method", "dpo learns from the pairs, ppo from a reward model made of them.")]
PreferenceData = Annotated[Path | None, _flag("preference_data", "A preference set, JSON or JSONL.")]
Dataset = Annotated[str | None, _flag("dataset", f"A set of data/rlhf: {', '.join(sets.SETS)}.")]
Collect = Annotated[bool, _flag("collect_preferences", "The model answers twice; you say which answer is better.")]
Synthetic = Annotated[bool, _flag("synthetic_preferences", "The model answers; a reward model or stated rules rank.")]
PromptsFile = Annotated[Path | None, _flag("prompts_file", "A prompt on each line, to collect on or for ppo.")]
RewardModel = Annotated[str | None, _flag("reward_model", "What ranks with --synthetic_preferences.")]
BatchSize = Annotated[int, typer.Option("--batch_size", min=1, help="Pairs or prompts per step.")]
LearningRate = Annotated[float, _flag("learning_rate", "At its highest.")]
Epochs = Annotated[float, _flag("epochs", "Times through the pairs or prompts.")]
OfDevice = Annotated[Device, _flag("device", "auto is the accelerator where there is one.")]
Annotator = Annotated[str | None, _flag("annotator", "Who judges; the login name when missing.")]
Output = Annotated[Path | None, _flag("output", "Folder of the run; under runs/rlhf when missing.")]
SavePth = Annotated[bool, _flag("save_pth", "Write the policy as a .pth checkpoint too.")]
Seed = Annotated[int, _flag("seed", "Of every draw.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=(__doc__ or "").partition("\n")[0])
def train(
    model_path: ModelPath,
    method: OfMethod = Method.dpo,
    preference_data: PreferenceData = None,
    dataset: Dataset = None,
    collect_preferences: Collect = False,
    synthetic_preferences: Synthetic = False,
    prompts_file: PromptsFile = None,
    reward_model: RewardModel = None,
    batch_size: BatchSize = 4,
    learning_rate: LearningRate = 1e-5,
    epochs: Epochs = 3.0,
    device: OfDevice = Device.auto,
    annotator: Annotator = None,
    output: Output = None,
    save_pth: SavePth = False,
    seed: Seed = 0,
) -> None:
    """Read the flags, make the recipe, run it, and say where the policy is."""
    named = None if dataset is None else sets.find(dataset, HOME / "datasets")
    source = _one_of(preference_data, named, collect_preferences, synthetic_preferences)
    _assert_read(source, method, prompts_file, reward_model, annotator, save_pth, model_path)
    _assert_usable(source, prompts_file)
    output = output or Path("runs/rlhf") / f"{method.value}-{source.stem if isinstance(source, Path) else source}"
    where = _device(device)
    start = _start(model_path, output)
    positions, width = _sizes(start)
    window = min(WINDOW, positions)
    raw: dict[str, Any] = {"project": _project(output), "seed": seed, "device": where}
    raw |= {"threads": 1} if width < NARROW else {}
    raw |= _pairs(source, prompts_file, start, window, reward_model)
    pace = {"batch": batch_size, "learning_rate": learning_rate, "epochs": epochs, "window": window}
    raw |= _stages(method, start, pace, prompts="asked" if isinstance(source, Path) and prompts_file else "train")
    recipe = build_recipe(raw, where="")
    if source == "collect":
        _ask(recipe, annotator)
    ran = run(recipe, display=display())
    for line in headlines({**_held_out(ran), **ran.summary}):
        typer.echo(line)
    for line in _written(recipe, source, model_path, save_pth):
        typer.echo(line)


def _one_of(data: Path | None, named: Path | None, collect: bool, synthetic: bool) -> Path | str:
    """Return where the pairs come from: a preference set, or the word for how they are made."""
    given: dict[str, Path | str | None] = {
        "--preference_data": data,
        "--dataset": named,
        "--collect_preferences": "collect" if collect else None,
        "--synthetic_preferences": "synthetic" if synthetic else None,
    }
    found = {flag: value for flag, value in given.items() if value is not None}
    if len(found) != 1:
        said = f"{' and '.join(found)} do not go together" if found else "There is nothing to learn from"
        raise InputError(f"{said}; give one of {', '.join(given)}.")
    return next(iter(found.values()))


def _assert_usable(source: Path | str, prompts_file: Path | None) -> None:
    """Refuse what cannot be learned from before anything is made, and tell what is odd about it."""
    if prompts_file is not None:
        sets.prompts(prompts_file)
    if not isinstance(source, Path):
        return
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise InputError(f"--preference_data is {source}, which {what}; give a preference set, or --dataset NAME.")
    if source.suffix == ".json":
        checked.usable(source)
        for notice in checked.validate(source).notices:
            typer.echo(f"{source}: {notice.text}", err=True)


def _assert_read(
    source: Path | str,
    method: Method,
    prompts_file: Path | None,
    reward_model: str | None,
    annotator: str | None,
    save_pth: bool,
    model_path: str,
) -> None:
    """Refuse a flag that would have no effect."""
    from_a_set = isinstance(source, Path)
    idle = {
        "--prompts_file names what ppo answers, or what preferences are made of": from_a_set
        and method is Method.dpo
        and prompts_file is not None,
        "--reward_model ranks with --synthetic_preferences": reward_model is not None and source != "synthetic",
        "--annotator names who judges with --collect_preferences": annotator is not None and source != "collect",
        "--save_pth writes what a .pth checkpoint began": save_pth and not model_path.endswith(".pth"),
    }
    for told, wrong in idle.items():
        if wrong:
            raise InputError(f"{told}; it has no effect here, so leave it out.")


def _device(device: Device) -> str:
    """Return where to train."""
    if device is Device.mps:
        raise InputError(
            "--device is mps, which tiebreak does not train on; use cpu, or cuda on a machine that has it."
        )
    if device is not Device.auto:
        return device.value
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _start(model_path: str, output: Path) -> str:
    """Return the model to start from as a Hugging Face folder or name; a checkpoint becomes a folder of the run."""
    if not model_path.endswith(".pth"):
        return model_path
    from tiebreak.models.pth import convert

    convert(Path(model_path), output / "start")
    return str(output / "start")


def _sizes(start: str) -> tuple[int, int]:
    """Return how many positions a model has and how wide it is."""
    from transformers import AutoConfig

    from tiebreak.models import load  # noqa: F401  (it tells transformers of the layout of .pth checkpoints)

    if Path(start).is_dir() and not (Path(start) / "config.json").is_file():
        raise InputError(f"--model_path is {start}, which holds no config.json; give a model's folder or a .pth file.")
    try:
        config = AutoConfig.from_pretrained(start)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(f"--model_path is {start}, which cannot be loaded: {said}") from error
    return getattr(config, "max_position_embeddings", None) or WINDOW, getattr(config, "hidden_size", None) or NARROW


def _project(output: Path) -> str:
    """Return the output folder as a recipe names a place: with a slash in it."""
    return str(output) if "/" in str(output) else f"./{output}"


def _pairs(
    source: Path | str, prompts_file: Path | None, start: str, window: int, reward_model: str | None
) -> dict[str, Any]:
    """Return the sections that end in pairs: read from a set, or of answers that people, a model or rules judge."""
    everything = {"split": {"train": None}}
    if isinstance(source, Path):
        read = {"format": "preferences", "path": str(source), **everything}
        read |= {"prompts": str(prompts_file)} if prompts_file else {}
        return {"import": read, "curate": ["soft_label", {"drop": "ties"}]}
    asked = prompts_file or PROMPTS
    if prompts_file is None:
        typer.echo(f"Prompts: {asked}; --prompts_file names others.", err=True)
    drawn = {"model": start, "temperature": 0.8, "top_k": 50, "window": window, "max_new_tokens": _answer(window)}
    made: dict[str, Any] = {"import": {"format": "prompts", "path": str(asked), **everything}}
    if source == "collect":
        made |= {"sample": {**drawn, "n": 2}, "collect": {"save": str(HOME / "datasets" / sets.COLLECTED)}}
        return made | {"curate": ["soft_label", {"drop": "ties"}]}
    by = {"by": "reward", "model": reward_model} if reward_model else {"by": "rule", "rule": "plain"}
    sure = {} if reward_model else {"sharpness": float("inf")}
    made |= {"sample": {**drawn, "n": 4}, "judge": {**by, **sure, "orders": "given"}}
    return made | {"curate": ["soft_label", "best_worst", {"drop": "ties"}], "export": {"path": "synthetic.jsonl"}}


def _answer(window: int) -> int:
    """Return the longest answer to draw: it leaves the prompt half of a small window at least."""
    return min(ANSWER, window // 2)


def _stages(method: Method, start: str, pace: dict[str, Any], *, prompts: str) -> dict[str, Any]:
    """Return the sections that train, and what is measured of it."""
    if method is Method.dpo:
        return {"train": {"policy": {"method": "dpo", "model": start, **pace}}, "report": {}}
    policy = {"method": "ppo", "model": start, "reward": "reward", "prompts": prompts, **pace}
    policy["rollout"] = {"max_new_tokens": _answer(pace["window"])}
    train = {"reward": {"method": "bradley_terry", "model": start, **pace}, "policy": policy}
    return {"train": train, "evaluate": {"reward": "reward"}, "report": {}}


def _ask(recipe: Recipe, annotator: str | None) -> None:
    """Let the model answer, then let somebody judge here until they quit or all is judged."""
    run(recipe, only=["import", "sample"], display=display())
    ask(recipe, annotator)


def _held_out(ran: Ran) -> dict[str, Any]:
    """Return how often the policy came to prefer the chosen answer of pairs that it did not learn from."""
    policy = ran.manifests["train.policy"]
    right, pairs = policy["outputs"]["last"].get("eval/rewards/accuracies"), policy["counts"].get("held out", 0)
    return {"held out pairs ranked right": wilson(right * pairs, pairs)._asdict()} if right is not None else {}


def _written(recipe: Recipe, source: Path | str, model_path: str, save_pth: bool) -> list[str]:
    """Write the policy in the other shapes that were asked for, and return where everything is."""
    policy = recipe.folder / "train" / "policy" / "model"
    saved = json.loads((recipe.folder / "saved.json").read_text()) if source == "collect" else {}
    lines = [f"Preferences: {path}" for path in saved.values()]
    if source == "synthetic":
        lines.append(f"Preferences: {recipe.folder / 'export' / 'synthetic.jsonl'}")
    if model_path.endswith(".pth"):
        from tiebreak.models.headwise import to_qwen3
        from tiebreak.models.load import load_causal, save_model
        from tiebreak.models.pth import write_pth

        loaded = load_causal(policy)
        if save_pth:
            write_pth(loaded, recipe.folder / "pth" / "model.pth")
            lines.append(f"Checkpoint: {recipe.folder / 'pth' / 'model.pth'}")
        policy = recipe.folder / "policy"
        save_model(to_qwen3(loaded.model), loaded.tokenizer, policy)
    return [*lines, f"Policy: {policy} (a Hugging Face folder)", f"Report: {recipe.folder / 'report.html'}"]


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    leave(app, "train_rlhf.py")
