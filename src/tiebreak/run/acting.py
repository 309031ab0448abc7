"""Stages that learn from the policy's own answers: from prompts, rewards and nets to a trained model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from tiebreak.models.adapters import Adapter
from tiebreak.models.encode import encode_prompt
from tiebreak.models.forms import SCALAR
from tiebreak.models.heads import to_reward, value_head
from tiebreak.models.load import Loaded, form_at, load_reward, start_reward
from tiebreak.recipe import Sample, Stage, expanded, pace_of, reward_models, rewards_of, rollout_of, row_knobs
from tiebreak.records import InputError, Prompt, content_id
from tiebreak.rewards.combine import Rewards, read_terms
from tiebreak.run.job import Job
from tiebreak.train.methods import METHODS
from tiebreak.train.offline import Pace, Trained, Watch
from tiebreak.train.online import learn
from tiebreak.train.policy_gradient.advantages import LEARNS_VALUES
from tiebreak.train.policy_gradient.settle import settle
from tiebreak.train.rollouts import Asked, Rollout
from tiebreak.train.rounds import repeat
from tiebreak.train.serving import Server

EVALUATED = 256
"""Held-out prompts that are answered at each evaluation: enough for a mean, few enough to cost little."""


def check_stage(stage: Stage, where: str) -> None:
    """Refuse what can be told to be wrong before anything is trained.

    Raises:
        InputError: switches that do not go together, a value net that nobody reads, no room for a prompt, and the like.
    """
    try:
        knobs = settle(row_knobs(METHODS[stage.method], stage.knobs, where), draws=rollout_of(stage)["n"])
        if stage.value is not None and knobs["advantage"] not in LEARNS_VALUES:
            raise InputError(f"{stage.method} learns no values; leave out value, or name ppo.")
        if stage.tokens == "auto":
            raise InputError("tokens: auto is for rows; give a number, such as 4096, or leave it out.")
        if stage.window <= stage.rollout.max_new_tokens:
            raise InputError(
                f"A window of {stage.window} leaves no room for a prompt beside rollout.max_new_tokens "
                f"{stage.rollout.max_new_tokens}; raise window."
            )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def prompts_of(job: Job, stage: Stage) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts to learn from and those held out: a share of the prompt groups, but no more than are asked.

    The test set stays untouched: what chooses weights must not be what they are reported on.
    """
    known = job.prompts(stage.prompts, stage.limit)
    groups = sorted({prompt.group for prompt in known}, key=lambda g: content_id("held", job.recipe.seed, g))
    away = set(groups[: min(EVALUATED, round(stage.held_out * len(groups)))])
    return [p for p in known if p.group not in away], [p for p in known if p.group in away][:EVALUATED]


def asked(loaded: Loaded, prompts: Sequence[Prompt], stage: Stage) -> tuple[list[Asked], int]:
    """Return prompts with their token ids and how many lost lines to leave room for an answer."""
    room = stage.window - stage.rollout.max_new_tokens
    if room < 1:
        raise InputError(
            f"A window of {stage.window} leaves no room for a prompt beside rollout.max_new_tokens "
            f"{stage.rollout.max_new_tokens}; raise window."
        )
    encoded = [encode_prompt(loaded.tokenizer, prompt, room=room, cut=stage.cut) for prompt in prompts]
    found = [Asked(prompt, one.ids) for prompt, one in zip(prompts, encoded, strict=True)]
    return found, sum(one.cut for one in encoded)


def rewards(job: Job, stage: Stage | Sample) -> Rewards:
    """Return what scores the answers, its reward models loaded once each."""

    @cache
    def model(named: str) -> Loaded:
        return load_reward(job.model(named)[1], device=job.recipe.device)

    written = [_with_endpoint(one, f"{job.name}.reward") for one in rewards_of(stage, job.recipe.train)]
    return Rewards(read_terms(written, where=f"{job.name}.reward", model=model, seed=job.recipe.seed))


def _with_endpoint(one: dict[str, Any], where: str) -> dict[str, Any]:
    """Fill in from the environment where a judge listens."""
    return {
        name: {**knobs, "endpoint": expanded(str(knobs["endpoint"]), f"{where}.{name}.endpoint")}
        if isinstance(knobs, dict) and "endpoint" in knobs
        else knobs
        for name, knobs in one.items()
    }


def critic(job: Job, stage: Stage, knobs: dict[str, Any], policy: Loaded) -> Any:
    """Return the value net of a method that has one: a head on the policy, or a net that starts where it is told.

    Without a word it starts from the reward model, as in Stiennon et al. (2020), or else from the policy; from the
    policy too where the reward model gives anything but one score.
    """
    if knobs["advantage"] not in LEARNS_VALUES:
        if stage.value is not None:
            raise InputError(f"{job.name}: {stage.method} learns no values; leave out value, or name ppo.")
        return None
    if stage.value == "shared":
        return value_head(policy.model)
    named = stage.value or next(iter(reward_models(stage, job.recipe.train)), None)
    where = None if named is None else job.model(named)[1]
    form = None if where is None else form_at(where)
    if where is None or (stage.value is None and form is not None and form != SCALAR):
        return to_reward(policy.model, policy.tokenizer, seed=job.recipe.seed)
    return start_reward(where, seed=job.recipe.seed, device=job.recipe.device).model


def pace(stage: Stage, prompts: int) -> Pace:
    """Return the pace; a number of steps stands for the epochs that hold as many batches."""
    made = pace_of(stage)
    if stage.steps is not None:
        per_epoch = math.ceil(prompts / min(made["batch"], prompts))
        made["epochs"] = stage.steps / per_epoch
    return Pace(**made)


@contextmanager
def source(job: Job, stage: Stage, loaded: Loaded, adapter: Adapter | None) -> Iterator[Server | None]:
    """Lend the server that draws the answers, None where the policy in this process does."""
    keys = stage.rollout
    if keys.endpoint is None:
        if keys.model or keys.refresh:
            raise InputError(f"{job.name}: rollout names a server's model or refresh; add its address as endpoint.")
        yield None
        return
    if keys.model is None:
        raise InputError(f"{job.name}: rollout.endpoint needs rollout.model, the server's name for the start.")
    server = Server(
        loaded.model,
        loaded.tokenizer,
        Rollout(**rollout_of(stage)),
        endpoint=expanded(keys.endpoint, f"{job.name}.rollout.endpoint"),
        served=keys.model,
        folder=job.home / "serving",
        seed=job.recipe.seed,
        adapter=adapter,
        refresh=keys.refresh,
        key_env=keys.key_env,
        concurrency=keys.concurrency,
        timeout=keys.timeout,
    )
    try:
        yield server
    finally:
        server.close()


def act(job: Job, stage: Stage, loaded: Loaded, watch: Watch, **how: Any) -> tuple[Trained, dict[str, int | float]]:
    """Train ``loaded`` in place by policy gradient; ``how`` is what every loop takes. Return also what was counted."""
    knobs = row_knobs(METHODS[stage.method], stage.knobs, job.name)
    known, held = prompts_of(job, stage)
    taught, cut = asked(loaded, known, stage)
    held_out, more = asked(loaded, held, stage)
    with source(job, stage, loaded, how["adapter"]) as server:
        done = learn(
            loaded.model,
            loaded.tokenizer,
            taught,
            rewards(job, stage),
            knobs,
            pace(stage, max(1, len(taught))),
            Rollout(**rollout_of(stage)),
            critic=critic(job, stage, knobs, loaded),
            held_out=held_out,
            watch=watch,
            source=server,
            **how,
        )
    return done, {"prompts": len(taught), "held out": len(held_out), "prompts cut": cut + more}


def repeat_rounds(
    job: Job, stage: Stage, loaded: Loaded, watch: Watch, **how: Any
) -> tuple[Trained, dict[str, int | float]]:
    """Train ``loaded`` in place, in rounds on the best of its own answers. Return also what was counted."""
    if stage.value is not None or stage.steps is not None:
        raise InputError(
            f"{job.name}: {stage.method} learns no values and takes its steps by rounds and epochs; leave "
            "out value and steps."
        )
    if stage.rollout.endpoint is not None:
        raise InputError(f"{job.name}: {stage.method} draws in this process; leave out rollout.endpoint.")
    knobs = row_knobs(METHODS[stage.method], stage.knobs, job.name)
    known, held = prompts_of(job, stage)
    taught, cut = asked(loaded, known, stage)
    held_out, more = asked(loaded, held, stage)
    done = repeat(
        loaded.model,
        loaded.tokenizer,
        taught,
        rewards(job, stage),
        knobs,
        Pace(**pace_of(stage)),
        Rollout(**rollout_of(stage)),
        held_out=held_out,
        watch=watch,
        **how,
    )
    return done, {"prompts": len(taught), "held out": len(held_out), "prompts cut": cut + more}


ACTS: Mapping[str, Callable[..., tuple[Trained, dict[str, int | float]]]] = {"online": act, "rounds": repeat_rounds}
"""How each loop is carried out that learns from the policy's own answers."""
