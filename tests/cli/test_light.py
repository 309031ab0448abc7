"""The base needs no tensor and no table library: what does not train works without the extras."""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.run.made import ANSWERS, Said, finish, start, strict, votes, write

EXTRAS = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "datasets", "pyarrow", "matplotlib")
WITHOUT = f"""
from importlib.machinery import PathFinder

class Base(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {EXTRAS!r} else super().find_spec(name, path, target)

import sys
sys.meta_path[sys.meta_path.index(PathFinder)] = Base
from tiebreak.cli import main
main()
"""
LOADED = (
    "import sys\nfrom tiebreak.cli import main\ntry:\n    main()\nfinally:\n    sys.stderr.write(' '.join(sys.modules))"
)


def without(*words: str) -> Said:
    return finish(start(*words, code=WITHOUT))


def loaded(*words: str) -> set[str]:
    said = finish(start(*words, code=LOADED))
    assert said.code == 0
    return set(said.err.split())


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], ("torch", "sqlalchemy", "numpy", "yaml", "aiohttp", "jinja2")),
        (["--version"], ("torch", "sqlalchemy", "numpy", "yaml", "aiohttp", "jinja2")),
        (["ls"], ("torch", "transformers", "sqlalchemy", "yaml", "aiohttp", "jinja2", "matplotlib")),
        (["judge", "--help"], ("torch", "transformers", "aiohttp", "jinja2", "matplotlib")),
        (["run", "r.yaml", "--dry-run"], ("torch", "transformers", "matplotlib")),
        (["run", "r.yaml"], ("torch", "transformers", "matplotlib")),
    ],
    ids=" ".join,
)
def test_a_verb_loads_only_what_it_needs(words: list[str], heavy: tuple[str, ...]) -> None:
    write("votes.jsonl", votes())
    write("r.yaml", ANSWERS)
    assert loaded(*words).isdisjoint(heavy)


def test_all_but_training_works_without_the_extras() -> None:
    write("votes.jsonl", votes())
    recipe = dict(ANSWERS)
    if find_spec("tiebreak.report.build"):
        recipe["report"] = {}
    path = write("r.yaml", recipe)
    for words in (["--help"], ["ls"], ["run", path, "--dry-run"], ["run", path], ["judge", "--help"]):
        said = without(*words)
        assert said.code == 0, said.err
    assert "pip install 'tiebreak[train]'" in finish(start("doctor", code=WITHOUT)).out
    assert len(Path("runs/votes/export/pairs.jsonl").read_text().splitlines()) > 0
    if "report" in recipe:
        assert Path(strict(without("report", path, "--json").out)["stages"]["report"]["outputs"]["path"]).is_file()


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["train", "train.x.method=sft", "train.x.model=./m", "train.x.rows=references"], "train"),
        (["sample", "model=./m"], "train"),
        (["import", "format=preferences", "path=rows.parquet"], "hub"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_what_needs_an_extra_names_it(words: list[str], extra: str) -> None:
    Path("rows.parquet").write_bytes(b"PAR1")
    assert without("import", "format=world", "n=9").code == 0
    said = without(*words)
    assert (said.code, said.out) == (1, "")
    assert f"pip install 'tiebreak[{extra}]'" in said.last
    assert "Traceback" not in said.err


@pytest.mark.slow
@pytest.mark.network
def test_a_fresh_environment_with_the_base_alone(tmp_path: Path, repository: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    run = tmp_path / "venv" / "bin"
    subprocess.run([run / "pip", "install", "-q", str(repository)], check=True)
    write("votes.jsonl", votes())
    done = subprocess.run([run / "tiebreak", "run", write("r.yaml", ANSWERS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([run / "python", "-c", "import torch"], capture_output=True).returncode == 1
    assert sys.version_info >= (3, 11)
