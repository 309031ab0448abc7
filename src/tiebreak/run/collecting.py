"""What people said, as a stage: it asks nobody, but gathers what `tiebreak collect` has written and says what is open.

People work beside a run and not inside it. So this stage is done anew whenever the ledger holds other answers than the
last time, and what rests on it follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.collect.queue import Queue, rows, rubric_of
from tiebreak.data.sets import next_file, write
from tiebreak.recipe import Recipe
from tiebreak.records import InputError, Judgment, content_id
from tiebreak.run.folder import StageFolder, read_json, write_json
from tiebreak.run.job import Job, Made
from tiebreak.run.stages import paired
from tiebreak.store import Ledger

SAVED = "saved.json"
"""In the project's folder: which preference set its answers are kept in."""


class Collection(NamedTuple):
    """A project's queue, what its people are asked, and where their answers are also kept as a preference set."""

    queue: Queue
    question: str
    least: int
    keep: Keep | None


class Keep:
    """Writes what stands of a queue into a preference set of its own, in one move, each time it is called.

    The file is chosen at the first answer and is the project's from then on.
    """

    def __init__(self, queue: Queue, ledger: Ledger, folder: Path, project: Path) -> None:
        self._queue, self._ledger, self._folder, self._note = queue, ledger, folder, project / SAVED

    @property
    def path(self) -> Path | None:
        """The file, None before the first answer."""
        known = read_json(self._note) or {}
        return Path(known[str(self._folder)]) if str(self._folder) in known else None

    def __call__(self, _judgment: Judgment | None = None) -> None:
        """Write the file anew; the first answer of all chooses its name."""
        found = rows(self._queue.judgments(), self._ledger)
        path = self.path
        if path is None and found:
            path = next_file(self._folder)
            write(path, found)
            write_json(self._note, {**(read_json(self._note) or {}), str(self._folder): str(path)})
        elif path is not None:
            write(path, found)


def queue_of(recipe: Recipe, ledger: Ledger, manifests: Mapping[str, Mapping[str, Any]]) -> Queue:
    """Return the queue over every two answers to a prompt that were sampled, or imported where nothing is sampled."""
    section = recipe.collect
    assert section is not None
    source = "sample" if recipe.sample else "import"
    responses = ledger.responses(ledger.get_set(f"{manifests[source]['key']}/responses"))
    pairs = paired(ledger, responses)[: section.limit]
    return Queue(ledger, pairs, rubric=rubric_of(section.question), votes=section.votes, seed=recipe.seed)


def mark(recipe: Recipe, ledger: Ledger, manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a hash of all that people have said, by which the stage knows whether there is something to gather."""
    return content_id("said", [judgment.id for judgment in queue_of(recipe, ledger, manifests).judgments()])


@contextmanager
def collection(recipe: Recipe, ledger: Ledger) -> Iterator[Collection]:
    """The project's collection, for a face that asks people.

    Raises:
        InputError: the recipe collects nothing, what is compared was not made yet, or there is nothing to compare.
    """
    section = recipe.collect
    if section is None:
        raise InputError("The recipe has no collect section; add collect: {}, or give collect.votes=1.")
    source = "sample" if recipe.sample else "import"
    manifest = StageFolder(recipe.folder, source).manifest
    if manifest is None:
        raise InputError(
            f"There is nothing to compare in {recipe.folder} yet: {source} has not been run; `tiebreak run` does that "
            "and stops where people are asked."
        )
    queue = queue_of(recipe, ledger, {source: manifest})
    _assert_something(queue, source)
    keep = Keep(queue, ledger, Path(section.save).expanduser(), recipe.folder) if section.save else None
    if keep is not None and queue.judgments():
        keep()
    yield Collection(queue, section.question, section.least, keep)


def collect(job: Job) -> Made:
    """Gather what people have said so far.

    Raises:
        InputError: fewer comparisons are judged than the recipe wants before it goes on.
    """
    section = job.recipe.collect
    assert section is not None
    queue = queue_of(job.recipe, job.ledger, job.before)
    _assert_something(queue, "sample" if job.recipe.sample else "import")
    judged, wanted = queue.judged(), min(section.least, len(queue))
    if judged < wanted:
        raise InputError(
            f"collect waits for people: {judged} of {len(queue)} comparisons are judged and {wanted} are wanted; run "
            f"`tiebreak collect --terminal project={job.recipe.project}`, then this command again."
        )
    judgments = queue.judgments()
    job.put("judgments", [judgment.id for judgment in judgments])
    counts: dict[str, int | float] = {"comparisons": len(queue), "judged": judged, "judgments": len(judgments)}
    for judgment in judgments:
        counts[judgment.verdict] = counts.get(judgment.verdict, 0) + 1
    notes = [f"{len(queue) - judged} comparisons are still open"] if judged < len(queue) else []
    dropped = {f"{reason} texts, never asked": count for reason, count in queue.unfit.items()}
    return Made(counts | {"people": len(queue.people())}, dropped, notes)


def _assert_something(queue: Queue, source: str) -> None:
    if not len(queue):
        lost = ", ".join(f"{count} pairs have {reason} texts" for reason, count in queue.unfit.items())
        cure = "sample with n: 2 or more" if source == "sample" else "import answers, or add a sample section"
        raise InputError(f"collect has no two different answers to one prompt{f' ({lost})' if lost else ''}; {cure}.")
