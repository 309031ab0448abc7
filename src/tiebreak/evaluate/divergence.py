"""How far a policy has moved from another model: the KL divergence of their answers, on answers the policy draws.

A policy that wins by going far is another thing than one that wins nearby, so the distance belongs beside a win rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from tiebreak.records import InputError, Progress, Prompt, quiet
from tiebreak.stats.intervals import Estimate, clustered_mean

if TYPE_CHECKING:
    from torch import Tensor

    from tiebreak.models.forest import Tree
    from tiebreak.models.load import Loaded

PLACES = 2**23
"""Log-probabilities of whole distributions held at once for each model: 32 MiB in float32."""

TREES = 32
"""Answers computed at once where the vocabulary is small."""


class Divergence(NamedTuple):
    """KL(policy || other) in nats per answer, all its tokens together and its end included.

    ``kl`` adds up the exact KL of the two next-token distributions along each drawn answer, ``ratio`` is the mean of
    log policy(y) / other(y). Both have the expectation KL(policy || other); ``kl`` is never negative and varies less.
    ``each`` is what ``kl`` is the mean of, one number per prompt.
    """

    kl: Estimate
    ratio: Estimate
    each: tuple[float, ...]


def divergence(
    policy: Loaded,
    other: Loaded,
    prompts: Sequence[Prompt],
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch: int = 128,
    window: int = 1024,
    cut: Literal["start", "end"] = "start",
    progress: Progress = quiet,
) -> Divergence:
    """Estimate KL(policy || other) of the answers to ``prompts``, one answer each, with intervals clustered by group.

    The chain rule, KL = E_policy sum_t KL(policy(. | y_<t) || other(. | y_<t)), leaves only the prefixes to chance
    (Amini et al. 2025, arXiv 2504.10637). The tokens are those that were drawn: a text that is encoded again may be
    split in another way. Drawn as :func:`tiebreak.sample.draw.draw` draws, so the same settings give the same answers.
    Both models have the same ``temperature``, and an answer that reaches the limit counts as far as it goes.

    Args:
        policy: the causal model that draws.
        other: what it is compared with, of the same vocabulary.
        prompts: what to answer.
        temperature: of both models, above 0: a greedy answer is one of many and says nothing of the rest.
        max_new_tokens: the limit of an answer.
        seed: of the draws.
        batch: sequences decoded together.
        window: tokens of prompt and answer together.
        cut: which end of too long a prompt loses lines.
        progress: called with prompts done and prompts in all.

    Raises:
        InputError: a temperature of 0, other words, or a model that cannot run a forest.
    """
    import torch

    from tiebreak.models.attention import forest_mode
    from tiebreak.models.forest import plant
    from tiebreak.models.logprobs import distributions

    if temperature <= 0:
        raise InputError("A KL divergence needs sampled answers; set the temperature above 0, for instance to 1.")
    if policy.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise InputError("A KL divergence compares token by token; the two models have different vocabularies.")
    trees = _drawn(policy, prompts, temperature, max_new_tokens, seed, batch, window, cut)
    steps: list[float] = []
    ratios: list[float] = []
    with torch.no_grad(), forest_mode(*dict.fromkeys((policy.model, other.model))):
        for part in _parts(trees, len(policy.tokenizer)):
            forest = plant(part).to(policy.model.device)
            ours = distributions(policy.model, forest, temperature=temperature)
            gaps = ours - distributions(other.model, forest, temperature=temperature)
            steps += forest.sums(next_token_kl(ours, gaps)).tolist()
            ratios += forest.sums(gaps.gather(1, forest.targets[:, None])[:, 0]).tolist()
            progress(len(steps), len(trees), {})
    groups = [prompt.group for prompt in prompts]
    return Divergence(clustered_mean(steps, groups), clustered_mean(ratios, groups), tuple(steps))


def next_token_kl(logps: Tensor, gaps: Tensor) -> Tensor:
    """Return sum_v p_v (log p_v - log q_v), (M,), of log p and its distances to log q, both (M, V); 0 log 0 is 0."""
    chances = logps.exp()
    return (chances * gaps.masked_fill(chances == 0, 0.0)).sum(-1)


def _drawn(
    policy: Loaded,
    prompts: Sequence[Prompt],
    temperature: float,
    max_new_tokens: int,
    seed: int,
    batch: int,
    window: int,
    cut: Literal["start", "end"],
) -> list[Tree]:
    """Return one answer to each prompt as the policy's own tokens, the end included where it came to one."""
    from tiebreak.models.encode import encode_prompt
    from tiebreak.models.forest import Tree
    from tiebreak.models.generate import generate

    tokenizer, room = policy.tokenizer, window - max_new_tokens
    if room < 1:
        raise InputError(f"A window of {window} leaves no prompt beside {max_new_tokens} new tokens; raise window.")
    trunks = [encode_prompt(tokenizer, prompt, room=room, cut=cut).ids for prompt in prompts]
    answers = generate(
        policy.model,
        trunks,
        [prompt.id for prompt in prompts],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch=batch,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )
    end = (tokenizer.eos_token_id,)
    return [
        Tree(trunk, (one.ids + end if one.finish == "stop" else one.ids,))
        for trunk, (one,) in zip(trunks, answers, strict=True)
    ]


def _parts(trees: Sequence[Tree], vocabulary: int) -> Iterator[list[Tree]]:
    """Yield the trees in order, as many at once as keep the distributions of their answers in bounds."""
    part: list[Tree] = []
    places = 0
    for tree in trees:
        size = len(tree.branches[0])
        if part and (len(part) == TREES or (places + size) * vocabulary > PLACES):
            yield part
            part, places = [], 0
        part.append(tree)
        places += size
    if part:
        yield part
