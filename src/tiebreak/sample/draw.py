"""Draw responses from a local model and keep each with the settings that made it."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tiebreak.records import InputError, Progress, Prompt, Response, quiet
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
    """Return ``name@revision``: retraining makes a new maker, so nothing old is taken for its work.

    For a folder the revision is a hash of its weights and tokenizer; for a hub name the whole name counts, for two
    organisations may call their models the same, with the commit of the snapshot in the local cache where there is one.
    """
    folder = Path(where)
    if not folder.is_dir():
        return f"{where}@{_commit(str(where)) or 'hub'}"
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(path for pattern in MARKS for path in folder.glob(pattern)):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"{name}@{digest.hexdigest()}"


MARKS = ("*.safetensors", "*.bin", "tokenizer.json")
"""Files of a model folder that decide what it says."""


def _commit(where: str) -> str | None:
    """Return the start of the commit that the local cache holds for a hub model, None where it holds none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(where, "config.json") if where.count("/") <= 1 else None
    return Path(found).parent.name[:12] if isinstance(found, str) else None


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
    cut: Literal["start", "end"] = "start",
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

    Raises:
        InputError: a window with no room for a prompt, or one the model has no positions for.
    """
    if window - max_new_tokens < 1:
        raise InputError(f"A window of {window} leaves no prompt beside {max_new_tokens} new tokens; raise window.")
    settings: dict[str, Any] = dict(temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens)
    settings |= {"seed": seed, "window": window, "cut": cut}
    known = _known(ledger, maker, settings)
    lacking = {p.id: p for p in prompts if any((p.id, number) not in known for number in range(n))}
    todo, new, lost = list(lacking.values()), 0, 0
    done = len({prompt.id for prompt in prompts}) - len(todo)
    total = done + len(todo)
    progress(done, total, {})
    for start in range(0, len(todo), COMMIT):
        part = todo[start : start + COMMIT]
        answers, cuts = _answer(loaded, part, maker, settings, n, batch, _shifted(progress, done, total))
        fresh = [answer for answer in answers if (answer.prompt_id, answer.draw) not in known]
        ledger.add_responses(fresh)
        known |= {(answer.prompt_id, answer.draw): answer for answer in fresh}
        new, lost, done = new + len(fresh), lost + cuts, done + len(part)
    return _sampled([known[prompt.id, number] for prompt in prompts for number in range(n)], new, lost)


def _answer(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    maker: str,
    settings: Mapping[str, Any],
    n: int,
    batch: int,
    progress: Progress,
) -> tuple[list[Response], int]:
    """Return ``n`` responses to each of ``prompts`` and how many prompts were cut."""
    from tiebreak.models.encode import encode_prompt
    from tiebreak.models.generate import generate

    tokenizer, room = loaded.tokenizer, settings["window"] - settings["max_new_tokens"]
    encoded = [encode_prompt(tokenizer, prompt, room=room, cut=settings["cut"]) for prompt in prompts]
    drawn = generate(
        loaded.model,
        [item.ids for item in encoded],
        [prompt.id for prompt in prompts],
        n=n,
        max_new_tokens=settings["max_new_tokens"],
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        top_k=settings["top_k"],
        seed=settings["seed"],
        batch=batch,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        progress=progress,
    )
    responses = [
        Response(
            prompt_id=prompt.id,
            text=tokenizer.decode(list(one.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False),
            maker=maker,
            settings=settings,
            draw=number,
            finish=one.finish,
            tokens=len(one.ids),
        )
        for prompt, answers in zip(prompts, drawn, strict=True)
        for number, one in enumerate(answers)
    ]
    return responses, sum(item.cut for item in encoded)


def _shifted(progress: Progress, base: int, total: int) -> Progress:
    def report(done: int, _all: int, shown: Mapping[str, float]) -> None:
        progress(base + done, total, shown)

    return report


def _sampled(chosen: Sequence[Response], new: int, cut: int) -> Sampled:
    return Sampled(
        response_ids=[response.id for response in chosen],
        new=new,
        known=len(chosen) - new,
        stopped=statistics.fmean(response.finish == "stop" for response in chosen) if chosen else 0.0,
        tokens=statistics.fmean(response.tokens or 0 for response in chosen) if chosen else 0.0,
        cut=cut,
    )


def _known(ledger: Ledger, maker: str, settings: Mapping[str, Any]) -> dict[tuple[str, int], Response]:
    return {
        (response.prompt_id, response.draw): response
        for response in ledger.responses_by(maker)
        if dict(response.settings) == dict(settings)
    }
