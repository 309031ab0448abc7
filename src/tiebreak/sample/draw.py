"""Draw responses from a local model and keep each with the settings that made it."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tiebreak.records import Progress, Prompt, Response, quiet
from tiebreak.store import Ledger

if TYPE_CHECKING:
    from tiebreak.models.load import Loaded

COMMIT = 256
"""Prompts between two writes to the ledger: what a kill costs at most."""


class Sampled(NamedTuple):
    """What sampling gave: response ids by prompt then draw, how many were known, and what the new ones look like.

    ``stopped`` is the share that ended by itself, ``tokens`` the mean length, ``cut`` the prompts that lost lines.
    """

    response_ids: list[str]
    new: int
    known: int
    stopped: float
    tokens: float
    cut: int


def maker_of(name: str, where: str | Path) -> str:
    """Return ``name@revision``: for a folder the revision is a hash of its weights, so retraining makes a new maker."""
    folder = Path(where)
    if not folder.is_dir():
        return f"{name}@hub"
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"{name}@{digest.hexdigest()}"


def draw(
    ledger: Ledger,
    loaded: Loaded,
    prompts: Sequence[Prompt],
    *,
    maker: str,
    n: int = 2,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch: int = 128,
    window: int = 1024,
    cut: str = "start",
    progress: Progress = quiet,
) -> Sampled:
    """Sample ``n`` responses to each of ``prompts`` into ``ledger``; what is there already is not drawn again.

    Args:
        ledger: holds the prompts and receives the responses.
        loaded: a causal model and its tokenizer.
        prompts: what to answer.
        maker: the model's name and revision, see :func:`maker_of`.
        n: responses per prompt.
        temperature: 0 is greedy, and then ``n`` more than 1 gives equal texts.
        top_p: nucleus sampling; 1 is off.
        top_k: 0 is off: nothing is filtered behind the user's back.
        max_new_tokens: the limit; a response that reaches it has ``finish`` length.
        seed: with the prompt and the draw it fixes the text.
        batch: sequences decoded together.
        window: tokens of prompt and response together.
        cut: which end of too long a prompt loses lines, ``start`` or ``end``.
        progress: called with prompts done and prompts in all.
    """
    from tiebreak.models.encode import encode_prompt
    from tiebreak.models.generate import generate

    settings = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "window": window,
        "cut": cut,
    }
    known = _known(ledger, maker, settings)
    todo = [prompt for prompt in prompts if any((prompt.id, number) not in known for number in range(n))]
    tokenizer, fresh, lost = loaded.tokenizer, list[Response](), 0
    done = len(prompts) - len(todo)
    progress(done, len(prompts), {})
    for start in range(0, len(todo), COMMIT):
        part = todo[start : start + COMMIT]
        encoded = [encode_prompt(tokenizer, p, room=window - max_new_tokens, cut=cut) for p in part]  # type: ignore[arg-type]
        lost += sum(item.cut for item in encoded)
        drawn = generate(
            loaded.model,
            [item.ids for item in encoded],
            [prompt.id for prompt in part],
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            batch=batch,
            eos=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            progress=lambda at, _all, shown, base=done: progress(base + at, len(prompts), shown),  # type: ignore[misc]
        )
        made = [
            Response(
                prompt_id=prompt.id,
                text=tokenizer.decode(list(one.ids), skip_special_tokens=True),
                maker=maker,
                settings=settings,
                draw=number,
                finish=one.finish,
                tokens=len(one.ids),
            )
            for prompt, answers in zip(part, drawn, strict=True)
            for number, one in enumerate(answers)
        ]
        ledger.add_responses(made)
        fresh += made
        done += len(part)
    known |= {(response.prompt_id, response.draw): response for response in fresh}
    chosen = [known[prompt.id, number] for prompt in prompts for number in range(n)]
    return Sampled(
        response_ids=[response.id for response in chosen],
        new=len(todo) * n,
        known=(len(prompts) - len(todo)) * n,
        stopped=statistics.fmean(response.finish == "stop" for response in chosen) if chosen else 0.0,
        tokens=statistics.fmean(response.tokens or 0 for response in chosen) if chosen else 0.0,
        cut=lost,
    )


def _known(ledger: Ledger, maker: str, settings: Mapping[str, Any]) -> dict[tuple[str, int], Response]:
    return {
        (response.prompt_id, response.draw): response
        for response in ledger.responses_by(maker)
        if dict(response.settings) == dict(settings)
    }
