"""One thin function per verb.

``tiebreak run RECIPE`` carries out a whole recipe; every other verb carries out one section of it, or of the recipe
that the project folder remembers. Knobs are given as ``key=value``, the same words as in a recipe.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from tiebreak.records import InputError

if TYPE_CHECKING:
    from tiebreak.recipe import Recipe

app = typer.Typer(
    name="tiebreak",
    help="Preference learning end to end: from the first vote to a win rate that can be defended.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Words = Annotated[
    list[str] | None,
    typer.Argument(help="RECIPE.yaml (optional) and key=value settings", metavar="[RECIPE] [KEY=VALUE]..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON object to standard output.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be done: steps or cells, calls, price, memory."),
]

VERBS = {
    "import": "Read prompts, answers and votes into the project's ledger.",
    "sample": "Let a model answer the prompts.",
    "judge": "Have a model or a rule say which answer is better, in both orders.",
    "audit": "Measure the judgments: position bias, agreement, length, cost.",
    "curate": "Turn judgments into training pairs.",
    "train": "Train the models of the train section.",
    "evaluate": "Measure win rates and the reward model.",
    "report": "Write the page that tells the whole run.",
    "export": "Write the pairs in the shapes other trainers read.",
}
TOP = ("project", "seed", "threads", "device", "ledger", "collect", "study", *VERBS)
TABLES = {
    "data": ("tiebreak.data.formats", "FORMATS"),
    "judge": ("tiebreak.judge.table", "JUDGES"),
    "rule": ("tiebreak.judge.rule", "RULES"),
    "overall": ("tiebreak.judge.overall", "RULES"),
    "audit": ("tiebreak.audit.table", "CHECKS"),
    "curate": ("tiebreak.curate.table", "STEPS"),
    "rewards": ("tiebreak.rewards.table", "REWARDS"),
    "objectives": ("tiebreak.train.objectives.presets", "OBJECTIVES"),
    "heads": ("tiebreak.train.objectives.presets", "HEADS"),
    "policy_gradient": ("tiebreak.train.policy_gradient.presets", "POLICY_GRADIENT"),
    "rounds": ("tiebreak.train.methods", "ROUNDS"),
    "orders": ("tiebreak.train.order", "ORDERS"),
    "optimizers": ("tiebreak.train.optimizers", "OPTIMIZERS"),
    "trackers": ("tiebreak.train.trackers", "TRACKERS"),
}


class _Verb(TyperCommand):
    """A command whose help also tells the keys of its section; they are read only when somebody asks."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the usual help, then the section's keys."""
        from tiebreak.run.manual import manual

        super().format_help(ctx, formatter)
        typer.echo(manual(str(self.name)))


@app.command("run")
def run_command(words: Words = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Carry out a recipe, redoing only what has changed."""
    from tiebreak.recipe import build_recipe, load_recipe

    path, settings = _recipe_and_settings(words or [])
    recipe = load_recipe(path, settings) if path else build_recipe(_remembered(settings), settings, where="")
    if not path:
        _must_exist(recipe)
    if dry_run:
        _show_forecast(recipe, as_json)
    else:
        _carry_out(recipe, [], as_json)


def _verb(section: str) -> Callable[..., None]:
    def command(words: Words = None, as_json: AsJson = False) -> None:
        given = _with_steps(words or []) if section == "curate" else words or []
        _carry_out(_recipe_for(section, given), [section], as_json)

    command.__doc__ = VERBS[section]
    return command


def _recipe_for(section: str, words: list[str]) -> Recipe:
    """Return the recipe that words name, or the project's own, with the section in it; bare keys are the section's."""
    from tiebreak.recipe import build_recipe, read_yaml

    path, settings = _recipe_and_settings(words)
    settings = [s if s.partition("=")[0].split(".")[0] in TOP else f"{section}.{s}" for s in settings]
    raw = read_yaml(path) if path else _remembered(settings)
    if section not in raw and not any(s.startswith((f"{section}.", f"{section}=")) for s in settings):
        raw = {**raw, section: {}}
    recipe = build_recipe(raw, settings, where=path or "")
    if not path:
        _must_exist(recipe)
    return recipe


SAID = {"slot": "with a winner", "tie": "tied", "both_bad": "both bad", "skip": "skipped"}
"""How a count of each verdict of people is said."""


@app.command("collect", cls=_Verb)
def collect_command(
    words: Words = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Ask here, a key for each answer.")] = False,
    annotator: Annotated[
        str | None, typer.Option("--annotator", help="Who answers; the login name when missing.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask people which answer is better; without --terminal, say how far everybody is."""
    from tiebreak.run.asking import ask, standing

    recipe = _recipe_for("collect", words or [])
    if terminal:
        ask(recipe, annotator)
    found = standing(recipe)
    if as_json:
        _print_json(found)
        return
    typer.echo(f"{found['judged']:,} of {found['comparisons']:,} comparisons have the votes they want.")
    for row in found["people"]:
        said = ", ".join(f"{count} {SAID[verdict]}" for verdict, count in row["verdicts"].items())
        typer.echo(f"  {row['name']}: {row['answered']} answered ({said}), {row['left']} left")
    if found["saved"]:
        typer.echo(f"Kept as a preference set: {found['saved']}")


@app.command("study", cls=_Verb)
def study_command(words: Words = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Carry out a recipe many times, with other methods, labels or seeds, and compare."""
    from tiebreak.run.study import said

    typer.echo(said(_recipe_for("study", words or []), dry_run=dry_run, as_object=as_json))


for _section in VERBS:
    app.command(_section, cls=_Verb)(_verb(_section))


@app.command("ls")
def ls_command(
    table: Annotated[str | None, typer.Argument(help=f"One of {', '.join(TABLES)}; all when missing.")] = None,
    as_json: AsJson = False,
) -> None:
    """List everything that has a name: formats, judges, rules, checks, curate steps, objectives."""
    from tiebreak.registry import as_objects, load_object, nearest, show

    if table is not None and table not in TABLES:
        raise InputError(f"There is no table {table!r}; there are {', '.join(TABLES)}.{nearest(table, TABLES)}")
    found = {
        name: list(load_object(":".join(place), what=name)) for name, place in TABLES.items() if table in (None, name)
    }
    if as_json:
        _print_json(as_objects(found))
    else:
        show(found)


@app.command("doctor")
def doctor_command(as_json: AsJson = False) -> None:
    """Say what this machine has, what is missing and how to get it."""
    from tiebreak.run.doctor import examine

    checks = examine(Path.cwd())
    if as_json:
        _print_json([check._asdict() for check in checks])
    else:
        for check in checks:
            typer.echo(
                f"{'ok ' if check.fine else '-- '} {check.what}: {check.found}"
                + (f"  ({check.cure})" if check.cure else "")
            )
    if any(not check.fine and check.needed for check in checks):
        raise typer.Exit(1)


def _recipe_and_settings(words: list[str]) -> tuple[str | None, list[str]]:
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1:
        raise InputError(f"{plain[1]!r} is neither the recipe nor key=value; write settings as section.key=value.")
    return (plain[0] if plain else None), [word for word in words if "=" in word]


def _with_steps(words: list[str]) -> list[str]:
    """Gather words that name curate steps (``soft_label drop=ties``) into the list the recipe would hold."""
    from tiebreak.curate.table import STEPS

    named = [word for word in words if word.partition("=")[0] in STEPS]
    if not named:
        return words
    steps = [f"{{{name}: {value}}}" if found else name for name, found, value in (w.partition("=") for w in named)]
    return [word for word in words if word not in named] + [f"curate=[{', '.join(steps)}]"]


def _remembered(settings: list[str]) -> dict[str, Any]:
    """Return the recipe the project folder holds from earlier verbs, or an empty one."""
    from tiebreak.run.folder import read_json

    project = _project(settings)
    found: dict[str, Any] = read_json(project.folder / "recipe.json") or {"project": project.project}
    return found


def _project(settings: list[str]) -> Recipe:
    from tiebreak.recipe import build_recipe

    return build_recipe({}, [setting for setting in settings if setting.startswith("project=")], where="")


def _must_exist(recipe: Recipe) -> None:
    """Refuse a project that no verb has begun, with the nearest one that is there."""
    from tiebreak.registry import nearest

    if recipe.import_ is None and not (recipe.folder / "recipe.json").is_file():
        there = [path.parent.name for path in recipe.folder.parent.glob("*/recipe.json")]
        raise InputError(
            f"There is no project {recipe.folder}; begin with tiebreak import ... project={recipe.project}, name one "
            f"that is there, or give a recipe.{nearest(recipe.folder.name, there)}"
        )


def _carry_out(recipe: Recipe, only: list[str], as_json: bool) -> None:
    from tiebreak.run import run
    from tiebreak.run.display import display

    show = display()
    try:
        ran = run(recipe, only=only, display=show)
    finally:
        if hasattr(show, "close"):
            show.close()
    if ran.stale:
        verb = "was" if len(ran.stale) == 1 else "were"
        stale = (
            f"{', '.join(ran.stale)} {verb} made with other knobs or inputs; `tiebreak run` redoes what has changed."
        )
        typer.echo(f"tiebreak: {stale}", err=True)
    shown = {name: m for name, m in ran.manifests.items() if not only or name.split(".")[0] in only}
    if as_json:
        kept = {"skipped": list(ran.skipped), "stale": list(ran.stale), "summary": ran.summary, "stages": shown}
        _print_json({"project": str(ran.folder), **kept})
        return
    if not only or only[0] in ("audit", "evaluate", "report"):
        for line in headlines(ran.summary):
            typer.echo(line)
    for manifest in shown.values():
        if "path" in manifest["outputs"]:
            typer.echo(f"\nWritten: {manifest['outputs']['path']}")


def headlines(summary: Mapping[str, Any]) -> list[str]:
    """Return the summary as aligned lines: what, value, 95 % interval, n."""
    lines = []
    for name, row in summary.items():
        if not isinstance(row, Mapping) or row.get("value") is None:
            continue
        what = name.replace("_", " ")
        if "of" in row:
            what = f"win rate of {row['of']} against {row['against']}"
        scale, unit = (1, "") if name == "position_bias" else (100, " %")
        interval = (
            f"{scale * row['low']:6.3g} to {scale * row['high']:.3g}{unit}" if row["low"] is not None else "no interval"
        )
        planted = f", planted {row['planted']:g}" if "planted" in row else ""
        truth = " (truth)" if row.get("against_truth") else ""
        lines.append(
            f"  {what + truth:<46} {scale * row['value']:6.3g}{unit:<2}  95 % {interval}, n = {row['n']:,}{planted}"
        )
    return lines


def _show_forecast(recipe: Recipe, as_json: bool) -> None:
    import yaml

    from tiebreak.run.forecast import forecast, told
    from tiebreak.run.run import remembered

    shown, found = remembered(recipe), forecast(recipe)
    if as_json:
        _print_json({"recipe": shown, **found})
        return
    typer.echo(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))
    for line in told(found):
        typer.echo(line)


def _print_json(value: object) -> None:
    from tiebreak.run.folder import as_json

    typer.echo(as_json(value))


@app.callback(invoke_without_command=True)
def _about(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"tiebreak {installed('tiebreak')}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 1, never a stack trace."""
    sys.path.append(os.getcwd())  # where a user's own module:function lies; last, so that it shadows nothing
    leave(app, "tiebreak")


def leave(commands: typer.Typer, name: str) -> NoReturn:
    """Carry out a command line and end the process; what the user can mend is told in one sentence.

    Raises:
        SystemExit: 0 when all went well, 1 for a mistake, 2 for words that cannot be read, 130 when stopped.
    """
    try:
        code = commands(standalone_mode=False, prog_name=name)
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except Exception as error:
        if (said := _sentence(error, name)) is None:
            raise
        if said:
            typer.echo(f"{name}: {said}", err=True)
        sys.exit(getattr(error, "exit_code", 1))
    if code == STOPPED:
        typer.echo(f"{name}: stopped; run the same command to go on from here.", err=True)
    sys.exit(code if isinstance(code, int) else 0)


STOPPED = 130
"""The exit code after Ctrl-C."""


def _sentence(error: Exception, name: str) -> str | None:
    """Return what is wrong in one sentence, nothing where it was told already, None where the mistake is ours."""
    if isinstance(error, InputError):
        return str(error)
    if hasattr(error, "format_message"):  # the command line itself cannot be read
        told = " ".join(str(error.format_message()).split())
        return told and f"{told.rstrip('.?')}{'?' if told.endswith('?') else '.'} `{name} --help` lists what there is."
    if isinstance(error, ModuleNotFoundError):
        from tiebreak.run.doctor import EXTRAS

        extra = next((extra for extra, packages in EXTRAS.items() if error.name in packages), None)
        return extra and f"this needs {error.name}: pip install 'tiebreak[{extra}]'."
    if "No space left" in str(error) or "disk is full" in str(error):
        return "the disk is full; free some space and run again, what was finished is kept."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename} cannot be used: {error.strerror}."
    return None


if __name__ == "__main__":
    main()
