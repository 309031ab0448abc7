"""Draw responses from a local model, keep each with the settings that made it, and choose among them by a reward."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tiebreak.records import InputError, Progress, Prompt, Response, quiet
from tiebreak.rewards.table import Answered
from tiebreak.sample.choose import Scores, best, best_of_n_kl, expected_best, rejection
from tiebreak.store import Ledger

if TYPE_CHECKING:
    from tiebreak.models.load import Loaded
    from tiebreak.rewards.combine import Rewards

COMMIT = 256
"""Prompts between two writes to the ledger, or of rewards to disk: what a kill costs at most."""

BETA = 0.5
"""Temperature of rejection sampling as published (Liu et al. 2023, section 5)."""


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


class Chosen(NamedTuple):
    """What choosing by a reward gave: response ids in the order they were drawn, and the numbers that describe it.

    ``best_of`` is the expected reward of the best of k draws, by k; ``unscored`` counts responses without a reward and
    ``faults`` by reason those of this call.
    """

    response_ids: list[str]
    numbers: dict[str, float]
    best_of: dict[str, float]
    unscored: int
    faults: Mapping[str, int]


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
        maker: the model's name and revision, see :func:`tiebreak.models.maker.maker_of`.
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


def choose(
    ledger: Ledger,
    response_ids: Sequence[str],
    rewards: Rewards,
    *,
    strategy: Literal["best_of_n", "rejection"],
    path: Path,
    keep: int | None = None,
    beta: float | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> Chosen:
    """Score responses and choose among those of each prompt; all of them stay in the ledger.

    Args:
        ledger: holds the responses and their prompts.
        response_ids: what to choose from.
        rewards: what scores them; nothing of it may depend on what was scored before.
        strategy: ``best_of_n`` keeps the best, ``rejection`` those that statistical rejection sampling accepts.
        path: gets a JSON line per prompt with each response's reward and terms, and which were kept. What it holds of
            these responses already is not scored again.
        keep: so many of each prompt: 1 when missing for the best; for rejection see
            :func:`tiebreak.sample.choose.rejection`.
        beta: temperature of rejection in units of the reward, 0.5 when missing.
        seed: of chance, which decides between equal rewards and what is accepted.
        progress: called with prompts done and prompts in all.

    Raises:
        InputError: no response of a batch could be scored, or beta is not above 0.
    """
    groups: dict[str, list[Response]] = {}
    for response in ledger.responses(list(dict.fromkeys(response_ids))):
        groups.setdefault(response.prompt_id, []).append(response)

    def pick(name: str, scores: Scores) -> list[int]:
        if strategy == "best_of_n":
            return best(scores, keep or 1, seed=seed, name=name)
        return rejection(scores, BETA if beta is None else beta, keep, seed=seed, name=name)

    worth = _worth(groups, {p.id: p for p in ledger.prompts(list(groups))}, rewards, path, progress)
    kept = {name: pick(name, line["rewards"]) for name, line in worth.lines.items()}
    _write(path, [{**line, "kept": kept[name]} for name, line in worth.lines.items()])
    all_scores = [line["rewards"] for line in worth.lines.values()]
    chosen = [line["rewards"][place] for name, line in worth.lines.items() for place in kept[name]]
    drawn = [score for scores in all_scores for score in scores if score is not None]
    numbers = {"mean reward": _mean(drawn), "mean reward of the kept": _mean(chosen)}
    most = max(map(len, all_scores), default=0)
    if strategy == "rejection":
        numbers["share accepted"] = len(chosen) / max(1, len(drawn))
    elif keep in (None, 1) and most:
        numbers["nats from the model at most"] = best_of_n_kl(most)
    whole = [scores for scores in all_scores if len(scores) == most and None not in scores]
    counts = sorted({*(2**power for power in range(most.bit_length())), most}) if whole else []
    return Chosen(
        response_ids=[line["response_ids"][place] for name, line in worth.lines.items() for place in kept[name]],
        numbers=numbers,
        best_of={str(k): _mean([expected_best(scores, k) for scores in whole]) for k in counts},
        unscored=sum(map(len, all_scores)) - len(drawn),
        faults=worth.faults,
    )


class _Worth(NamedTuple):
    """A line per prompt with the rewards of its responses, and what went wrong."""

    lines: dict[str, dict[str, Any]]
    faults: dict[str, int]


def _worth(
    groups: Mapping[str, Sequence[Response]],
    prompts: Mapping[str, Prompt],
    rewards: Rewards,
    path: Path,
    progress: Progress,
) -> _Worth:
    """Score each prompt's responses; those that ``path`` holds are scored already."""
    ids = {name: [response.id for response in some] for name, some in groups.items()}
    known = {line["prompt_id"]: line for line in _lines(path) if ids.get(line["prompt_id"]) == line["response_ids"]}
    _write(path, list(known.values()))
    todo = [name for name in groups if name not in known]
    faults: dict[str, int] = {}
    progress(len(known), len(groups), {})
    with path.open("a", encoding="utf-8") as file:
        for start in range(0, len(todo), COMMIT):
            part = todo[start : start + COMMIT]
            scored = rewards([_answered(prompts[name], groups[name]) for name in part])
            for reason, count in scored.faults.items():
                faults[reason] = faults.get(reason, 0) + count
            for i, name in enumerate(part):
                terms = {label: values[i] for label, values in scored.terms.items()}
                own = {"prompt_id": name, "response_ids": ids[name]}
                known[name] = {**own, "rewards": scored.totals[i], "terms": terms}
                file.write(json.dumps(known[name]) + "\n")
            file.flush()
            progress(len(known), len(groups), {})
    return _Worth({name: known[name] for name in groups}, faults)


def _answered(prompt: Prompt, responses: Sequence[Response]) -> Answered:
    """Return what a reward sees of a prompt's responses; a length counts the EOS that ended it."""
    return Answered(
        prompt,
        tuple(response.text for response in responses),
        tuple(response.finish for response in responses),
        tuple((response.tokens or 0) + (response.finish == "stop") for response in responses),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file; one that a kill cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines in one move."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    partial.replace(path)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
