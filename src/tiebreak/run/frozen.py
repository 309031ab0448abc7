"""A stage whose backbone stays as it is: features once, then a head on them."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import NamedTuple

from tiebreak.models.cards import head_card
from tiebreak.models.encode import encode_tree
from tiebreak.models.features import LinearHead, put_in, weights_mark
from tiebreak.models.forest import Tree
from tiebreak.models.ideal import Backbone, save_head
from tiebreak.models.load import Loaded
from tiebreak.recipe import Stage, pace_of
from tiebreak.records import InputError, Response
from tiebreak.run.aim import Aim
from tiebreak.run.folder import write_text
from tiebreak.run.job import Job
from tiebreak.run.rows import Encoded
from tiebreak.train.heads import fit_examples
from tiebreak.train.methods import METHODS
from tiebreak.train.objectives.by_feature import READS_PROMPTS, READS_SHIFTED, READS_USERS
from tiebreak.train.objectives.part import made_by
from tiebreak.train.offline import Trained
from tiebreak.train.pace import Pace


class Headed(NamedTuple):
    """What the training did; ``apart`` says that the head is more than a layer and has a folder of its own."""

    done: Trained
    apart: bool


def fit_frozen(job: Job, stage: Stage, aim: Aim, loaded: Loaded, rows: Encoded) -> Headed:
    """Train a head; a linear one becomes the last layer of ``loaded``, any other one is written to ``head``.

    Raises:
        InputError: rows without what the method reads, or a backbone that is not a model of its own.
    """
    assert aim.trainer is not None
    users = rows.users if stage.method in READS_USERS else ()
    if any(not user for user in users):
        raise InputError(f"{job.name} learns for each user, and a row has none; {made_by('user')}.")
    started = time.monotonic()
    done = fit_examples(
        loaded.model,
        aim.trainer,
        rows.learned,
        aim.knobs,
        Pace(**pace_of(stage)),
        seed=job.recipe.seed,
        held_out=rows.held_out,
        users=users,
        prompts=stage.method in READS_PROMPTS,
        shifted=_sampled(job, stage, loaded) if stage.method in READS_SHIFTED else (),
        patience=stage.patience,
        cache=job.project / "train" / "features",
        progress=job.progress,
    )
    tokens = sum(row.tree.size for row in rows.learned)
    trained = Trained(done.steps, tokens, time.monotonic() - started, done.last, done.stopped, done.best)
    if isinstance(done.head, LinearHead):
        put_in(done.head, loaded.model)
        return Headed(trained, False)
    if not isinstance(stage.model, str):
        raise InputError(
            f"{job.name} keeps a head apart from its backbone; train the backbone as a stage and name that."
        )
    _, where = job.model(stage.model)
    mark = weights_mark(loaded.model)
    below = Backbone(where=str(where), mark=mark, seed=job.recipe.seed, window=stage.window, cut=stage.cut)
    save_head(done.head, job.home / "head", backbone=below)
    row = METHODS[stage.method]
    told = {"does": row.does, "formula": row.formula, "paper": row.paper}
    write_text(job.home / "head" / "README.md", head_card(str(job.home / "head"), stage.model, stage.method, **told))
    return Headed(trained, True)


def _sampled(job: Job, stage: Stage, loaded: Loaded) -> list[Tree]:
    """Return the prompts with the responses that the sample section drew, which need no labels."""
    if "sample" not in job.before:
        raise InputError(f"{job.name} learns from responses of the policy beside the rows; add a section sample.")
    by_prompt: dict[str, list[Response]] = defaultdict(list)
    for response in job.ledger.responses(job.set_of("sample", "responses")):
        by_prompt[response.prompt_id].append(response)
    prompts = job.ledger.prompts(list(by_prompt))
    found = (
        encode_tree(loaded.tokenizer, prompt, by_prompt[prompt.id], window=stage.window, cut=stage.cut)[0]
        for prompt in prompts
    )
    return [tree for tree in found if tree is not None and len(tree.branches) > 1]
