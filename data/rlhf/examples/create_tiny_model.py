"""Makes a tiny model to try everything on: model.pth with tokenizer.json beside it, in about a minute on a laptop.

Its tokenizer and its English come from the shipped sets alone, both answers of every pair. It writes words and rarely
sense, which is enough to see data, training and sampling work before a real model is at hand. Equal seeds give equal
models on one machine.

    python data/rlhf/examples/create_tiny_model.py [-o FOLDER] [--seed 0] [--steps N]
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[3]
try:
    import torch
    import typer

    from tiebreak.data import sets
    from tiebreak.models.encode import encode_completion, encode_prompt
    from tiebreak.models.forest import Tree
    from tiebreak.models.generate import generate
    from tiebreak.models.hex_tokenizer import train_hex
    from tiebreak.models.load import Loaded, build_causal
    from tiebreak.models.pth import write_pth
    from tiebreak.records import InputError, Prompt, Response
    from tiebreak.run.display import Live, display
    from tiebreak.train.objectives.presets import OBJECTIVES
    from tiebreak.train.offline import Example, Pace, Trained, fit
except ModuleNotFoundError as error:
    sys.exit(f'This needs {error.name}; install the project first: pip install -e "{ROOT}[train]"')

DATA = ROOT / "data" / "rlhf"
SETS = ("starter", "synthetic")
VOCABULARY = 800
BATCH = 4
MODEL = {
    "model_type": "headwise_gpt",
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}


def create(
    folder: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the two files go.")] = (
        ROOT / "models" / "tiny"
    ),
    seed: Annotated[int, typer.Option(help="Another seed gives another model.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training; more give better English.")] = 600,
) -> None:
    """Train a tiny model on the shipped sets and write it."""
    torch.set_num_threads(1)  # the same sums on a machine with any number of cores
    path = folder / "model.pth"
    try:
        check(folder)
        rows = [row for name in SETS for row in sets.read(sets.find(name, DATA / "datasets"))]
        prompts = sets.prompts(DATA / "prompts" / "collection_prompts.txt")
        tokenizer = train_hex([*prompts, *(row[name] for row in rows for name in sets.TEXTS)], vocabulary=VOCABULARY)
        loaded = build_causal(MODEL, tokenizer, seed=seed)
        trained = train(loaded, examples(loaded, rows), seed=seed, steps=steps)
        write_pth(loaded, path)
    except (InputError, OSError) as error:
        sys.exit(str(error))
    report(loaded, trained, path, prompts[0])


def check(folder: Path) -> None:
    """Refuse a folder whose tokenizer others need, before a minute is spent.

    Raises:
        InputError: another model is in it.
    """
    others = [*folder.glob("config.json"), *(other for other in folder.glob("*.pth") if other.name != "model.pth")]
    if others:
        raise InputError(f"{folder} holds {others[0].name}, which belongs to another model; name a folder of its own.")


def examples(loaded: Loaded, rows: Sequence[sets.Row]) -> list[Example]:
    """Return every answer behind its prompt, all of it to be learned: a model this new has to learn prompts too."""
    found = []
    for row in rows:
        prompt = Prompt(text=row["prompt"])
        for answer in (row["chosen"], row["rejected"]):
            completion = encode_completion(loaded.tokenizer, Response(prompt_id=prompt.id, text=answer))
            room = loaded.model.config.max_position_embeddings - len(completion)
            if room > 1:
                trunk = encode_prompt(loaded.tokenizer, prompt, room=room).ids
                found.append(Example(Tree(trunk[:1], (trunk[1:] + completion,))))
    return found


def train(loaded: Loaded, rows: Sequence[Example], *, seed: int, steps: int) -> Trained:
    """Train ``loaded`` in place for ``steps`` steps."""
    shown = display()
    pace = Pace(epochs=steps / -(-len(rows) // BATCH), batch=BATCH, learning_rate=6e-3, weight_decay=0.01)
    try:
        with tempfile.TemporaryDirectory() as place:
            done = fit(
                loaded.model,
                rows,
                OBJECTIVES["sft"].knobs,
                pace,
                seed=seed,
                folder=Path(place),
                progress=shown.begin("training"),
            )
    finally:
        if isinstance(shown, Live):
            shown.close()
    size = sum(weight.numel() for weight in loaded.model.parameters())
    counts: dict[str, Any] = {"answers": len(rows), "steps": done.steps, "tokens": done.tokens, "parameters": size}
    manifest = {"seconds": done.seconds, "counts": counts, "dropped": {}, "notes": []}
    shown.end("training", manifest, skipped=False)
    return done


def report(loaded: Loaded, trained: Trained, path: Path, prompt: str) -> None:
    """Say what was written, let the model speak, and name what comes next."""
    model, tokenizer = loaded.model, loaded.tokenizer
    asked = encode_prompt(tokenizer, Prompt(text=prompt), room=256).ids
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ((answer,),) = generate(model, [asked], ["shown"], max_new_tokens=60, temperature=0.7, eos=eos, pad=pad)
    typer.echo(f"{path} and tokenizer.json beside it: {len(tokenizer)} ids, loss {trained.last['loss']:.2f} per token")
    typer.echo(f"  {prompt.strip()}\n  {tokenizer.decode(answer.ids).strip()}")
    started = os.path.relpath(ROOT / "train_rlhf.py")
    pairs = os.path.relpath(DATA / "datasets" / sets.SETS["starter"])
    typer.echo(f"Next: python {started} --method dpo --model_path {os.path.relpath(path)} --preference_data {pairs}")


if __name__ == "__main__":
    typer.run(create)
