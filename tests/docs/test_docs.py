"""README.md and docs/ as tests: every block runs or says why not, every name has its line, every link resolves.

``python tests/docs/test_docs.py`` rewrites the key tables of docs/run.md from the recipe's models, and the tables of
docs/objectives.md from the registry.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from tiebreak.cli import TABLES, app
from tiebreak.recipe import Recipe, build_recipe, sections
from tiebreak.registry import load_object

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "console", "bash")
LANGUAGES = (*RUN, "text", "yaml", "json", "jsonl", "sql", "ini")
HARMLESS = ("tiebreak", "cat", "ls", "head", "tail", "wc", "mkdir", "cp", "mv", "printf", "echo", "python", "sort")
SLOW = ("tutorial.md", "train.md", "sample.md", "README.md")
PAGE_OF = (
    {"data": "import", "rule": "judge", "overall": "aspects"}
    | dict.fromkeys(("orders", "optimizers", "trackers"), "train")
    | dict.fromkeys(("objectives", "heads"), "objectives")
    | dict.fromkeys(("policy_gradient", "rounds"), "online")
)
NAMES = [page.name for page in PAGES]


class Block(NamedTuple):
    """One fenced block: the line its fence is on, its language, its text and why it is not run."""

    line: int
    language: str
    text: str
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    found = []
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        if fence := re.match(r"^( *)```(\S*)", lines[at]):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            inside = [line.removeprefix(fence[1]) for line in lines[at + 1 : end]]
            note = re.fullmatch(r"\s*<!-- not run:(.*)-->\s*", lines[at - 1]) if at else None
            found.append(Block(at + 1, fence[2], "\n".join(inside) + "\n", note[1].strip() if note else None))
            at = end
        at += 1
    return found


def commands(text: str) -> list[str]:
    """The commands of a block: in a console block the lines after ``$ `` with what continues them, else all lines."""
    lines = text.splitlines()
    typed = any(line.startswith("$ ") for line in lines)
    found: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if typed and not line.startswith("$ "):
            continue  # what the command printed
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        command = [line.removeprefix("$ ")]
        while command[-1].endswith("\\") and at < len(lines):
            command.append(lines[at].removeprefix("> "))
            at += 1
        if here := re.search(r"<<-?\s*['\"]?(\w+)", command[-1]):
            while at < len(lines) and command[-1] != here[1]:
                command.append(lines[at])
                at += 1
        found.append("\n".join(command))
    return found


def programs(command: str) -> list[str]:
    """The programs a command starts, a pipe's each."""
    first = command.split("<<")[0].replace("\\\n", " ")
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "''", first)
    parts = re.split(r"\|\|?|&&|;", bare)
    return [re.sub(r"^(\s*\w+=\S*\s+)*", "", part).split()[0] for part in parts if part.strip()]


TINY_MODEL = ("hidden_size=32", "intermediate_size=64", "num_hidden_layers=1", "num_attention_heads=2")
TINY = (
    *("import.n=160", "import.held_out=24", "sample.limit=80", "train.sft.vocabulary=600"),
    *(f"train.{name}.{knob}" for name in ("sft", "reward", "policy") for knob in ("epochs=1", "batch=8")),
    *(f"train.sft.model.{size}" for size in (*TINY_MODEL, "num_key_value_heads=2")),
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project that `make quickstart` leaves, made in small."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    subprocess.run(
        [sys.executable, "-m", "tiebreak.cli", "run", ROOT / "recipes" / "quickstart.yaml", f"project={folder}", *TINY],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return folder


@pytest.fixture
def desk(tmp_path: Path, quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader has it: the recipes, the quickstart's project, no key and no network."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    shutil.copytree(quickstart, tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tiny models lose more by sharing cores than they win by using two
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p.name in SLOW), id=p.name) for p in PAGES]
)
def test_every_block_of_a_page_runs_in_order(page: Path, desk: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language not in RUN or block.not_run is not None:
            continue
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
            continue
        script = commands(block.text)
        assert script, f"{where} holds no command; a console block marks them with '$ '."
        for command in script:
            for program in programs(command):
                assert program in HARMLESS, f"{where} starts {program!r}, which the docs may not run"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(script)], cwd=desk, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{where}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_fence_names_its_language_and_what_is_not_run_says_why(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page.name}:{block.line} is {block.language!r}; expected {LANGUAGES}"
        if block.not_run is not None:
            assert block.language in RUN, f"{page.name}:{block.line} is never run, so it needs no reason"
            assert len(block.not_run.split()) >= 2, f"{page.name}:{block.line} is not run and does not say why"


def test_most_blocks_run() -> None:
    found = [block for page in PAGES for block in blocks(page) if block.language in RUN]
    left_out = [block for block in found if block.not_run is not None]
    assert len(left_out) < len(found) / 3, [block.not_run for block in left_out]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_recipes_shown_in_a_page_are_recipes(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_URL", "http://localhost:8000/v1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/tiebreak")
    known = {field.alias or name for name, field in Recipe.model_fields.items()}
    for block in blocks(page):
        if block.language == "yaml":
            read = yaml.safe_load(block.text)
            if isinstance(read, dict) and set(read) <= known:
                assert build_recipe(read, where=f"{page.name}:{block.line}").seed >= 0


def test_every_verb_has_a_page_and_the_index_links_every_page() -> None:
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    pages = {page.stem for page in PAGES[1:]}
    assert verbs - pages == set()
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert pages - {"index"} - set(re.findall(r"\]\((\w+)\.md\)", index)) == set()


def test_every_row_that_ls_shows_is_named_on_its_page() -> None:
    said = subprocess.run([sys.executable, "-m", "tiebreak.cli", "ls", "--json"], capture_output=True, text=True)
    missing = []
    for table, rows in json.loads(said.stdout).items():
        page = PAGE_OF.get(table, table)
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        missing += [f"{row['name']} in docs/{page}.md" for row in rows if f"`{row['name']}`" not in text]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_resolves(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        there = page if not path else (page.parent / path).resolve()
        assert there.exists(), f"{page.name} links {link}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links {link}"


def anchors(page: Path) -> set[str]:
    """The names GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_pages_speak_of_the_project_alone() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for pattern in (r"/work/", r"/tmp/(?!tiebreak)", r"\bTODO\b", r"\bFIXME\b", r"[\U0001F300-\U0001FAFF]"):
            assert not re.search(pattern, text), f"{page.name} holds {pattern}"


KEYS = re.compile(r"<!-- keys: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def key_table(model: type[BaseModel]) -> str:
    """The keys of a section as a Markdown table: name, default, meaning."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if model is Recipe and not field.description:
            continue  # a section, which has a table of its own
        empty = field.default is None or isinstance(field.default, BaseModel)
        default = "required" if field.is_required() else "" if empty else f"`{_written(field.default)}`"
        choices = " or ".join(f"`{choice}`" for choice in _choices(field.annotation))
        meaning = "; ".join(part for part in (field.description or "", choices) if part)
        rows.append(f"| `{field.alias or name}` | {default} | {meaning} |")
    return "\n".join(rows)


def _written(default: Any) -> str:
    return json.dumps(default) if not isinstance(default, str) else default or '""'


def _choices(annotation: Any) -> list[str]:
    parts = getattr(annotation, "__args__", ())
    return [c for part in parts for c in ([part] if isinstance(part, str) else _choices(part))]


def with_key_tables(text: str) -> str:
    """The page with each table between ``keys`` marks written from its model."""
    return KEYS.sub(lambda m: f"<!-- keys: {m[1]} -->\n\n{key_table(getattr(sections, m[1]))}\n\n<!-- end -->", text)


def test_key_tables_equal_the_models() -> None:
    text = (ROOT / "docs" / "run.md").read_text(encoding="utf-8")
    assert text == with_key_tables(text), "run: python tests/docs/test_docs.py"
    shown = set(KEYS.findall(text))
    assert shown == {m.__name__ for m in vars(sections).values() if _is_section(m)}


ROWS = re.compile(r"<!-- rows: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def row_table(name: str) -> str:
    """The rows of a table of methods as a Markdown table."""
    lines = ["| name | formula | switches and defaults | when to use it | paper |", "|---|---|---|---|---|"]
    for row in load_object(":".join(TABLES[name]), what=name):
        knobs = ", ".join(f"`{key}: {_written(value)}`" for key, value in (row.knobs or {}).items() if value != "")
        cells = (f"`{row.name}`: {row.does}", f"`{row.formula}`", knobs, row.use, row.paper)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def with_row_tables(text: str) -> str:
    """The page with each table between ``rows`` marks written from the registry."""
    return ROWS.sub(lambda m: f"<!-- rows: {m[1]} -->\n\n{row_table(m[1])}\n\n<!-- end -->", text)


def test_the_tables_of_methods_equal_the_registry() -> None:
    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert text == with_row_tables(text), "run: python tests/docs/test_docs.py"
    assert set(ROWS.findall(text)) == {"objectives", "heads"}


def _is_section(model: object) -> bool:
    return isinstance(model, type) and issubclass(model, sections.Section) and model.__name__ not in ("Section", "Open")


if __name__ == "__main__":
    run_page = ROOT / "docs" / "run.md"
    run_page.write_text(with_key_tables(run_page.read_text(encoding="utf-8")), encoding="utf-8")
    methods_page = ROOT / "docs" / "objectives.md"
    methods_page.write_text(with_row_tables(methods_page.read_text(encoding="utf-8")), encoding="utf-8")
