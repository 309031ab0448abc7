"""A whole experiment small enough for a test, and the command line called as a user calls it."""

from __future__ import annotations

import copy
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tiebreak.cli import main

MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
_SMALL = {"window": 192, "batch": 16}
TINY: dict[str, Any] = {
    "project": "tiny",
    "seed": 1,
    "import": {"format": "world", "n": 96, "held_out": 16, "split": {"test": "held-out", "train": None}},
    "train": {
        "sft": {
            "method": "sft",
            "rows": "responses",
            "model": MODEL,
            "vocabulary": 400,
            "learning_rate": 3e-3,
            **_SMALL,
        },
        "reward": {"method": "bradley_terry", "model": "sft", "learning_rate": 1e-3, **_SMALL},
        "policy": {"method": "dpo", "model": "sft", "learning_rate": 1e-4, **_SMALL},
    },
    "sample": {"model": "sft", "n": 2, "max_new_tokens": 8, "window": 192, "limit": 64},
    "judge": {"by": "rule", "rule": "world", "sharpness": 2.0, "noise": 0.5, "slot_bias": 0.2},
    "audit": {},
    "curate": [{"soft_label": {"average": "probability"}}, {"drop": "ties"}],
    "evaluate": {
        "truth": "world",
        "reward": "reward",
        "win_rate": {"of": "policy", "against": ["sft", "reference"], "judge": {"by": "rule", "rule": "world"}},
    },
    "export": {},
}
ANSWERS = {
    "project": "votes",
    "import": {"path": "votes.jsonl", "by": "human:ann"},
    "judge": {"by": "rule", "rule": "longer"},
    "audit": {},
    "curate": ["soft_label", {"drop": "ties"}],
    "export": {},
}
"""A recipe without a model: written answers, a rule that judges them, and training rows for others."""


def tiny(**changes: Any) -> dict[str, Any]:
    """Return a copy of the small experiment with sections replaced; None leaves one out."""
    recipe = copy.deepcopy(TINY) | changes
    return {name: section for name, section in recipe.items() if section is not None}


def write(name: str, value: Any) -> str:
    """Write a recipe (JSON is YAML) or, from a list, JSON lines; return its name."""
    lines = [json.dumps(row) for row in value] if isinstance(value, list) else [json.dumps(value)]
    Path(name).write_text("".join(f"{line}\n" for line in lines))
    return name


def votes(count: int = 40) -> list[dict[str, str]]:
    """Return rows of prompt, chosen and rejected."""
    return [
        {"prompt": f"What is {n}?", "chosen": f"It is the number {n}.", "rejected": "No" + " idea" * (n % 7)}
        for n in range(count)
    ]


class Said(NamedTuple):
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on standard error."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


class Shell:
    """The command line in this process, which is fast; ``start`` runs it as a process of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._caught = monkeypatch, capsys

    def __call__(self, *words: str) -> Said:
        """Run ``tiebreak WORDS`` here."""
        self._patch.setattr(sys, "argv", ["tiebreak", *words])
        self._patch.setattr(sys, "path", list(sys.path))
        self._caught.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = self._caught.readouterr()
        code = stop.value.code
        assert isinstance(code, int)
        return Said(code, out, err)

    def fine(self, *words: str) -> Said:
        """Run ``tiebreak WORDS`` here, expecting no complaint."""
        said = self(*words)
        assert said.code == 0, said.err
        return said


def heeding_ctrl_c() -> None:
    """Heed SIGINT in a process that begins: a shell's background jobs ignore it, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*words: str, code: str = "from tiebreak.cli import main; main()", **extra: str) -> subprocess.Popen[str]:
    """Start ``tiebreak WORDS`` as a process of its own in the current folder."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **extra},
        preexec_fn=heeding_ctrl_c,
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> Said:
    """Wait for a process and return what it said."""
    out, err = process.communicate(timeout=timeout)
    return Said(process.returncode, out, err)


def read(path: str | Path) -> Any:
    """Read a JSON file as strictly as other languages do."""
    return strict(Path(path).read_text())


def strict(text: str) -> Any:
    """Parse JSON that holds no NaN and no Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def results(folder: str | Path) -> dict[str, Any]:
    """Return the summary of a run without its clock."""
    summary: dict[str, Any] = read(Path(folder) / "summary.json")
    return {name: value for name, value in summary.items() if name != "seconds"}


def ledger_is_sound(folder: str | Path) -> bool:
    """Ask SQLite itself whether the project's ledger is in order."""
    with sqlite3.connect(Path(folder) / "ledger.db") as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",))


def count(folder: str | Path, table: str) -> int:
    """Count rows of a table as another process sees them; 0 while there is none."""
    path = Path(folder) / "ledger.db"
    if not path.exists():
        return 0
    connection = sqlite3.connect(path, timeout=30)
    try:
        return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()
