"""The sections that move records: each pulls what it needs, calls one room, and says what came out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from tiebreak.audit.run import audit as run_audit
from tiebreak.curate.table import Texts, unit_of
from tiebreak.curate.table import curate as run_curate
from tiebreak.data.formats import FORMATS
from tiebreak.data.importing import import_records
from tiebreak.data.split import split_prompts
from tiebreak.data.table import Entry, Refused
from tiebreak.data.trl import export_pairs
from tiebreak.judge.run import batch_pairs, judge_pairs
from tiebreak.judge.table import JUDGES, make_judge
from tiebreak.judge.table import Judge as Judging
from tiebreak.recipe import Import, Judge, Recipe, Sample, expanded, row_knobs
from tiebreak.records import InputError, Pair, Prompt, Response, to_dict
from tiebreak.run.folder import read_pairs, write_json, write_rows
from tiebreak.run.job import Job, Made, place_of
from tiebreak.store import Ledger

MADE_UP = frozenset({"world", "arithmetic"})
"""Formats that read no file."""


def check_source(section: Import) -> None:
    """Refuse a source that is not there."""
    if section.path is None and section.format in FORMATS and section.format not in MADE_UP:
        raise InputError(f"import: format {section.format!r} reads a file; add path=FILE.")
    for key, path in (("path", section.path), ("prompts", section.prompts)):
        if path is not None and not Path(path).is_file():
            what = "is a folder" if Path(path).is_dir() else "does not exist"
            raise InputError(f"import.{key} is {path}, which {what}; pass the path of the data to import.")


def read_entries(section: Import, seed: int) -> Iterator[Entry | Refused]:
    """Read the source a section names, row by row; a seed the section does not give is the run's."""
    check_source(section)
    row = FORMATS[section.format]
    knobs = row_knobs(row, section.knobs, "import")
    if "seed" in knobs and "seed" not in section.knobs:
        knobs["seed"] = seed
    entries: Iterable[Entry | Refused] = row.load()(None if section.path is None else Path(section.path), **knobs)
    return islice(entries, section.limit)


def import_(job: Job) -> Made:
    """Read a source into the ledger and split its prompts."""
    section = job.recipe.import_
    assert section is not None
    done = import_records(job.ledger, read_entries(section, job.recipe.seed), progress=job.progress)
    splits = split(job.ledger.prompts(done.prompt_ids), section.split, job.recipe.seed)
    job.put("prompts", done.prompt_ids)
    job.put("responses", done.response_ids)
    job.put("judgments", done.judgment_ids)
    if section.prompts is not None:
        further = FORMATS["prompts"].load()(Path(section.prompts))
        splits["asked"] = import_records(job.ledger, further, progress=job.progress).prompt_ids
    for name, ids in splits.items():
        job.put(f"prompts/{name}", ids)
    write_json(job.home / "report.json", [asdict(remark) for remark in done.report])
    refused = {remark.reason: remark.count for remark in done.report if not remark.kept}
    kept = [f"{remark.count} rows kept: {remark.reason}, first {remark.where}" for remark in done.report if remark.kept]
    counts = {
        "rows": done.counts["rows"],
        "prompts": len(done.prompt_ids),
        "responses": len(done.response_ids),
        "judgments": len(done.judgment_ids),
    }
    sizes = {name: len(ids) for name, ids in splits.items()}
    return Made(counts | {f"prompts {n}": size for n, size in sizes.items()}, refused, kept, {"splits": sizes})


def split(prompts: Sequence[Prompt], wanted: Mapping[str, Any], seed: int) -> dict[str, list[str]]:
    """Split by tag where a share is a word, then by shares; what no share takes is ``train``, or else ``rest``.

    Whole groups move together: a group with one tagged prompt goes where the tag says. A share above 0 of few groups
    is one group at least.
    """
    sides: dict[str, list[str]] = {}
    left = list(prompts)
    for name, tag in wanted.items():
        if isinstance(tag, str):
            away = {prompt.group for prompt in left if tag in prompt.tags}
            if not away:
                raise InputError(f"import.split.{name} wants prompts with the tag {tag!r}; no prompt has it.")
            sides[name] = [prompt.id for prompt in left if prompt.group in away]
            left = [prompt for prompt in left if prompt.group not in away]
    shares = {name: share for name, share in wanted.items() if not isinstance(share, str)}
    groups = len({prompt.group for prompt in left})
    if groups < 2 or not shares:
        return sides | {"train": [prompt.id for prompt in left]}
    if list(shares.values()) == [None]:
        return sides | {name: [prompt.id for prompt in left] for name in shares}
    least = {name: 1 if isinstance(s, float) and 0 < s * groups < 1 else s for name, s in shares.items()}
    return sides | split_prompts(left, least, seed=seed)


def sample(job: Job) -> Made:
    """Draw responses from a model, all to go on or those that a reward chooses."""
    from tiebreak.models.load import load_causal
    from tiebreak.models.maker import maker_of
    from tiebreak.sample.draw import draw

    section = job.recipe.sample
    assert section is not None
    name, where = job.model(section.model)
    prompts = job.prompts(section.prompts, section.limit)
    drawn = draw(
        job.ledger,
        load_causal(where, device=job.recipe.device),
        prompts,
        maker=maker_of(name, where),
        n=section.n,
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        max_new_tokens=section.max_new_tokens,
        seed=job.recipe.seed,
        batch=section.batch,
        window=section.window,
        cut=section.cut,
        progress=job.progress,
    )
    made = Made(
        {
            "prompts": len(prompts),
            "responses": len(drawn.response_ids),
            "known": drawn.known,
            "prompts cut": drawn.cut,
            "share ended by EOS": round(drawn.stopped, 4),
            "mean tokens": round(drawn.tokens, 2),
        }
    )
    return _kept(job, section, drawn.response_ids, made)


def _kept(job: Job, section: Sample, drawn: Sequence[str], made: Made) -> Made:
    """Put the responses that go on into the section's set; all that were drawn stay in the ledger."""
    if section.strategy == "all":
        job.put("responses", drawn)
        return made
    from tiebreak.run.acting import rewards
    from tiebreak.sample.draw import choose

    chosen = choose(
        job.ledger,
        drawn,
        rewards(job, section),
        strategy=section.strategy,
        path=job.home / "rewards.jsonl",
        keep=section.keep,
        beta=section.beta,
        seed=job.recipe.seed,
        progress=job.progress,
    )
    job.put("drawn", drawn)
    job.put("responses", chosen.response_ids)
    numbers = {name: round(value, 4) for name, value in chosen.numbers.items()}
    counts = {**made.counts, "responses": len(chosen.response_ids), "drawn": len(drawn), **numbers}
    why = {"no reward": chosen.unscored} if chosen.unscored else {}
    notes = [f"{count:,} responses without a reward: {reason}" for reason, count in chosen.faults.items()]
    return Made(counts, why, notes, {"mean reward of the best of": chosen.best_of})


def judge_of(section: Judge, recipe: Recipe) -> Judging:
    """Return the judge a section names; seed and device are the run's where the section gives none.

    A reward model may be a training stage of the recipe; it reads as that stage read.
    """
    return make_judge(section.by, **_here(section.by, section.knobs, recipe))


def _here(by: str, given: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return a judge's knobs, its jurors' too, with what the run knows: seed, device, addresses, a stage's model."""
    knobs = row_knobs(JUDGES[by], given, "judge")
    if "seed" in knobs and "seed" not in given:
        knobs["seed"] = recipe.seed
    if "device" in knobs and "device" not in given and not knobs.get("endpoint"):
        knobs["device"] = recipe.device
    for name in ("endpoint", "judge_endpoint"):
        if knobs.get(name):
            knobs[name] = expanded(str(knobs[name]), f"judge.{name}")
    if by == "reward":
        if stage := recipe.train.get(knobs["model"]):
            knobs |= {name: getattr(stage, name) for name in ("window", "cut") if name not in given}
        knobs["model"] = str(place_of(recipe, str(knobs["model"])))
    if by == "panel":
        knobs["jurors"] = [_juror(spec, recipe) for spec in knobs["jurors"]]
    return knobs


def _juror(spec: Any, recipe: Recipe) -> Any:
    """Return a juror with its knobs settled; what is no judge is refused by the panel."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("by"), str) or spec["by"] == "panel":
        return spec
    return {"by": spec["by"], **_here(spec["by"], {k: v for k, v in spec.items() if k != "by"}, recipe)}


def judge(job: Job) -> Made:
    """Have every pair of responses of a prompt judged."""
    section = job.recipe.judge
    assert section is not None
    source = "sample" if "sample" in job.before else "import"
    pairs = paired(job.ledger, job.ledger.responses(job.set_of(source, "responses")))[: section.limit]
    if not pairs:
        raise InputError("judge has no two responses to one prompt; sample with n=2 or import answers.")
    whom = judge_of(section, job.recipe)
    if section.batch_files:
        _batch(job, section, whom, pairs)
    done = judge_pairs(
        job.ledger,
        whom,
        pairs,
        orders=section.orders,
        attempts=section.attempts,
        concurrency=section.concurrency,
        seed=job.recipe.seed,
        again=section.again,
        usd=section.budget.usd if section.budget else None,
        calls=section.budget.calls if section.budget else None,
        progress=job.progress,
    )
    job.put("judgments", done.judgment_ids)
    job.put("jurors", done.juror_ids)
    dropped = {f"{reason} texts, never asked": done.counts[reason] for reason in ("identical", "empty")}
    counts = {"pairs": len(pairs), "judgments": len(done.judgment_ids)}
    counts |= {name: done.counts[name] for name in ("asked", "known", "invalid", "ties")}
    spent = {"tokens in": done.tokens_in, "tokens out": done.tokens_out}
    return Made(counts | spent, {k: v for k, v in dropped.items() if v}, done.notes, price=done.price)


class Waits(InputError):
    """Nothing is wrong, and nothing more can be done before somebody else has done their part."""

    exit_code = 0


def _batch(job: Job, section: Judge, whom: Judging, pairs: Sequence[tuple[Prompt, Response, Response]]) -> None:
    """Read what a provider answered and write what is left to ask.

    Raises:
        Waits: something is left, so that the stage is not done yet.
    """
    folder = Path(str(section.batch_files)).expanduser()
    how: dict[str, Any] = {"orders": section.orders, "attempts": section.attempts, "again": section.again}
    written = batch_pairs(job.ledger, whom, pairs, folder, seed=job.recipe.seed, progress=job.progress, **how)
    if written.done:
        return
    files = f" in {', '.join(map(str, written.files))}" if written.files else ""
    raise Waits(
        f"{written.requests:,} requests are new{files}, {written.waiting:,} still wait for a result, and "
        f"{written.known:,} questions have their answers; hand the files to the provider, put its result files into "
        f"{folder}, and run again. Without batch_files the rest is asked directly."
    )


def paired(ledger: Ledger, responses: Iterable[Response]) -> list[tuple[Prompt, Response, Response]]:
    """Return every two responses to one prompt, with the prompt."""
    by_prompt: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        by_prompt[response.prompt_id].append(response)
    prompts = {prompt.id: prompt for prompt in ledger.prompts(list(by_prompt))}
    return [(prompts[key], a, b) for key, group in by_prompt.items() for a, b in combinations(group, 2)]


def audit(job: Job) -> Made:
    """Measure the judgments."""
    section = job.recipe.audit
    assert section is not None
    ids = [judgment.id for judgment in job.judgments()]
    if "judge" in job.before:  # a panel's jurors are measured beside it
        ids += job.set_of("judge", "jurors")
    findings = run_audit(job.ledger, ids, checks=section.checks, knobs=section.knobs)
    write_json(job.home / "findings.json", [to_dict(finding) for finding in findings])
    verdicts = Counter(finding.verdict for finding in findings)
    counts: dict[str, int | float] = {"judgments": len(ids), "findings": len(findings)}
    return Made(counts | {str(name): count for name, count in verdicts.items()})


def curate(job: Job) -> Made:
    """Derive training rows from the judgments, by each list of steps."""
    judgments, texts = job.judgments(), Texts(job.ledger.prompts, job.ledger.responses)
    others = job.others()
    counts: Counter[str] = Counter({"judgments": len(judgments)})
    dropped: Counter[str] = Counter()
    funnel: list[dict[str, Any]] = []
    lists = job.recipe.curations
    for name, steps in lists.items():
        done = run_curate(judgments, steps, texts, others=others)
        job.ledger.add_prompts(one for one in done.made if isinstance(one, Prompt))
        job.ledger.add_responses(one for one in done.made if isinstance(one, Response))
        write_rows(job.home / f"{name}.jsonl", done.rows)
        before = f"{name}: " if len(lists) > 1 else ""
        funnel += [{**stage._asdict(), "step": before + stage.step} for stage in done.funnel]
        for stage in done.funnel:
            dropped.update({before + reason: count for reason, count in stage.dropped.items()})
            counts.update({f"{before}{what} by {stage.step}": count for what, count in stage.changed.items()})
        counts[before + unit_of(done.rows)] = len(done.rows)
        if ties := sum(isinstance(row, Pair) and row.p == 0.5 for row in done.rows):
            counts[f"{before}ties kept"] = ties
    write_json(job.home / "funnel.json", funnel)
    return Made(dict(counts), dict(dropped))


def export(job: Job) -> Made:
    """Write the pairs in a shape other trainers read."""
    section = job.recipe.export
    assert section is not None
    pairs = read_pairs(job.project / "curate" / f"{section.curated}.jsonl")
    prompts = {p.id: p for p in job.ledger.prompts(sorted({pair.prompt_id for pair in pairs}))}
    ids = sorted({side for pair in pairs for side in (pair.chosen_id, pair.rejected_id)})
    responses = {response.id: response for response in job.ledger.responses(ids)}
    path = job.home / section.path
    done = export_pairs(pairs, prompts, responses, path, shape=section.shape, conversational=section.conversational)
    counts = {"pairs": len(pairs), "rows": done.rows}
    return Made(counts, {"ties": done.ties, "equal texts": done.equal_texts}, outputs={"path": str(path)})


def report(job: Job) -> Made:
    """Write the page."""
    from tiebreak.report.build import build
    from tiebreak.run.summary import summarise

    section = job.recipe.report
    assert section is not None
    write_json(job.project / "summary.json", summarise(job.project, job.before))
    path = build(job.project, title=section.title or job.recipe.project, figures=section.figures)
    return Made(outputs={"path": str(path)})
