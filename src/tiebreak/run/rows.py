"""What a stage learns from: rows as records, split into those to learn from and those held out, then as trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from tiebreak.models.encode import encode_dialogue, encode_sides
from tiebreak.models.forest import Tree
from tiebreak.models.forms import SCALAR, ratings_of, step_marks
from tiebreak.models.load import Loaded
from tiebreak.recipe import Stage
from tiebreak.records import Graded, InputError, Pair, Prompt, Response, content_id, to_dict
from tiebreak.run.aim import Aim
from tiebreak.run.folder import read_rows, write_json
from tiebreak.run.job import Job
from tiebreak.run.plan import rows_of
from tiebreak.train.objectives.part import made_by
from tiebreak.train.rows import Example, check_shapes

Item = TypeVar("Item")

LONG = "completion longer than the window"
EQUAL = "equal completions"
TIES = "ties, which a hard target cannot use"
MERGED = "steps that end within one token"
UNREFERENCED = "no reference answer"
"""Why a row is dropped."""


class Row(NamedTuple):
    """One row in words: answers with what they answer, and what an Example says of them besides the tree."""

    sides: tuple[tuple[Prompt, Response], ...]
    says: dict[str, Any]
    record: Pair | Graded | None = None

    @property
    def prompt(self) -> Prompt:
        """The prompt of its first answer."""
        return self.sides[0][0]


class Encoded(NamedTuple):
    """Trees to learn from and those held out, how many of what there are, and whose rows they are, in that order."""

    learned: list[Example]
    held_out: list[Example]
    counts: dict[str, int | float]
    users: list[str]


class Rows:
    """The rows of one stage, and why others went.

    Args:
        job: the running stage, whose folder gets ``held_out.json``.
        stage: its section.
        aim: what it learns by.
    """

    def __init__(self, job: Job, stage: Stage, aim: Aim) -> None:
        self.stage, self.aim = stage, aim
        self.dropped: Counter[str] = Counter()
        kind = rows_of(stage)
        if kind in ("pairs", "chosen"):
            self.rows, self.held = self._curated(job, chosen=kind == "chosen")
        else:
            self.rows, self.held = self._written(job, kind), []
        self.rows = self.rows[: stage.limit]
        self._check()

    def _check(self) -> None:
        """Refuse rows that the objective cannot take, before a model is loaded; words do not matter for that."""
        bare = []
        for row in (*self.rows, *self.held):
            tree = Tree((0,), ((0,),) * len(row.sides))
            bare.append(Example(tree, **row.says | self._marks(row)))
        needs = [need for need in self.aim.asked.needs if need != "mismatched"]  # which is made of the other rows
        check_shapes(bare, kind=self.aim.asked.kind, needs=needs)

    @property
    def texts(self) -> list[str]:
        """All texts to learn from, for a tokenizer that has to be trained."""
        return [text for row in self.rows for p, answer in row.sides for text in (p.plain, answer.text)]

    def _written(self, job: Job, kind: str) -> list[Row]:
        prompts = job.prompts("train")
        if kind == "references":
            known = [p for p in prompts if p.reference]
            self.dropped[UNREFERENCED] += len(prompts) - len(known)
            return [Row(((p, Response(prompt_id=p.id, text=p.reference or "")),), {}) for p in known]
        by_id = {prompt.id: prompt for prompt in prompts}
        written = job.ledger.responses(job.set_of("import", "responses"))
        return [Row(((by_id[r.prompt_id], r),), {}) for r in written if r.prompt_id in by_id]

    def _curated(self, job: Job, *, chosen: bool) -> tuple[list[Row], list[Row]]:
        records = self._of_band(read_rows(job.project / "curate" / f"{self.stage.curated}.jsonl"))
        usable = [one for one in records if self._tells(one)]
        self.dropped[TIES] += len(records) - len(usable)
        rows = _in_words(job, usable, chosen=chosen)
        groups = [row.prompt.group for row in rows]
        learned, held = apart(rows, groups, tested(job), self.stage.held_out, job.recipe.seed)
        write_json(job.home / "held_out.json", [to_dict(row.record) for row in held if row.record is not None])
        return learned, held

    def _tells(self, one: Pair | Graded) -> bool:
        """Whether a row prefers something, or what it learns by needs no preference."""
        if isinstance(one, Pair):
            return self.aim.ties or one.p > 0.5
        return self.aim.asked.kind != "pairs" or len(set(one.grades)) > 1

    def _of_band(self, records: Sequence[Pair | Graded]) -> Sequence[Pair | Graded]:
        if self.stage.band is None:
            return records
        bands = {one.band for one in records if isinstance(one, Pair) and one.band is not None}
        if not bands:
            raise InputError(f"band is {self.stage.band}, and the rows have no band; {made_by('band')}.")
        if self.stage.band not in bands:
            raise InputError(f"band is {self.stage.band}, and the rows have {', '.join(map(str, sorted(bands)))}.")
        return [one for one in records if isinstance(one, Pair) and one.band == self.stage.band]

    def encode(self, loaded: Loaded) -> Encoded:
        """Turn the rows into trees; a row whose completion does not fit is dropped whole and counted."""
        cut = 0
        out: list[list[Example]] = []
        users: list[str] = []
        for rows in (self.rows, self.held):
            examples = []
            for row in rows:
                tree, was_cut = self._tree(loaded, row)
                cut += was_cut
                if tree is None:
                    self.dropped[LONG] += 1
                elif self._steps(row) and not tree.taught:
                    self.dropped[MERGED] += 1
                elif isinstance(row.record, Pair) and len(tree.branches) > 1 and tree.branches[0] == tree.branches[1]:
                    self.dropped[EQUAL] += 1
                else:
                    users.append("" if row.record is None else row.record.user)
                    examples.append(Example(tree, label=row.prompt.source, **row.says | self._marks(row)))
            out.append(examples)
        counts: dict[str, int | float] = {"rows": len(out[0]), "held out": len(out[1]), "prompts cut": cut}
        self.dropped = +self.dropped
        return Encoded(out[0], out[1], counts, users)

    def _tree(self, loaded: Loaded, row: Row) -> tuple[Tree | None, bool]:
        how: dict[str, Any] = {"window": self.stage.window, "cut": self.stage.cut}
        if self.stage.loss_on == "assistant":
            ((prompt, answer),) = row.sides
            return encode_dialogue(loaded.tokenizer, prompt, answer, **how)
        tree, cut = encode_sides(loaded.tokenizer, row.sides, **how)
        if tree is not None and (steps := self._steps(row)):
            ends, form = [end for end, _ in steps], self.aim.form or SCALAR
            said = (tree.branches[0], row.sides[0][1].text, ends)
            marks = step_marks(loaded.tokenizer, *said, separator=form.separator)
            return (tree if marks is None else tree._replace(taught=(marks,))), cut
        if tree is not None and self.stage.loss_on == "all":  # the prompt's first token is the trunk, the rest a branch
            tree = Tree(tree.trunk[:1], (tree.trunk[1:] + tree.branches[0],))
        return tree, cut

    def _steps(self, row: Row) -> tuple[tuple[int, float], ...]:
        """Return the steps of a row where the head reads steps."""
        form = self.aim.form
        if form is None or form.kind != "steps" or not isinstance(row.record, Graded) or not row.record.steps:
            return ()
        return row.record.steps[0]

    def _marks(self, row: Row) -> dict[str, Any]:
        """Return what the head of the stage is to give for a row: ratings in its order, or one P(right) a step."""
        form, record = self.aim.form, row.record
        if form is None or not isinstance(record, Graded):
            return {}
        if form.kind == "attributes" and record.ratings:
            return {"ratings": ratings_of(form, record.ratings[0])}
        return {"steps": tuple(p for _, p in steps)} if (steps := self._steps(row)) else {}


def _in_words(job: Job, records: Sequence[Pair | Graded], *, chosen: bool) -> list[Row]:
    """Look up what the rows' records name."""
    named = [_named(one, chosen=chosen) for one in records]
    beside = {key for one in records if isinstance(one, Pair) and not chosen for key in one.beside.values()}
    wanted = beside.union(key for _, keys in named for key in keys)
    responses = {response.id: response for response in job.ledger.responses(sorted(wanted))}
    asked = {key for ids, _ in named for key in ids} | {response.prompt_id for response in responses.values()}
    prompts = {prompt.id: prompt for prompt in job.ledger.prompts(sorted(asked))}
    rows = []
    for one, (prompt_ids, response_ids) in zip(records, named, strict=True):
        sides = tuple((prompts[p], responses[r]) for p, r in zip(prompt_ids, response_ids, strict=True))
        rows.append(Row(sides, {} if chosen else _says(one), one))
        if isinstance(one, Pair) and not chosen:  # what stands beside answers a prompt of its own
            more = tuple((prompts[responses[key].prompt_id], responses[key]) for key in one.beside.values())
            rows[-1] = rows[-1]._replace(sides=sides + more)
    return rows


def _named(one: Pair | Graded, *, chosen: bool) -> tuple[list[str], list[str]]:
    """Return the prompts and the responses of a row's compared sides."""
    if isinstance(one, Graded):
        ids = list(one.prompt_ids or (one.prompt_id,) * len(one.response_ids))
        return (ids[:1], list(one.response_ids[:1])) if chosen else (ids, list(one.response_ids))
    if chosen:
        return [one.prompt_id], [one.chosen_id]
    return [one.prompt_id, one.rejected_prompt_id or one.prompt_id], [one.chosen_id, one.rejected_id]


def _says(one: Pair | Graded) -> dict[str, Any]:
    if isinstance(one, Graded):
        return {"weight": one.weight, "grades": one.grades}
    return {"p": one.p, "weight": one.weight, "margin": one.margin, "beside": tuple(one.beside)}


def tested(job: Job) -> set[str]:
    """Return the prompt groups that the import put aside for testing."""
    if "import" not in job.before or "test" not in job.before["import"]["outputs"]["splits"]:
        return set()
    return {prompt.group for prompt in job.ledger.prompts(job.set_of("import", "prompts/test"))}


def apart(
    items: Sequence[Item], groups: Sequence[str], tested: set[str], share: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """Split ``items`` into those to learn from and those held out, whole groups of prompts at a time.

    Those of ``tested`` groups are held out; where there are none, ``share`` of the groups is drawn.
    """
    if not tested.intersection(groups):
        drawn = sorted(set(groups), key=lambda group: content_id("held", seed, group))
        tested = set(drawn[: round(share * len(drawn))])
    both = list(zip(items, groups, strict=True))
    return [one for one, group in both if group not in tested], [one for one, group in both if group in tested]
