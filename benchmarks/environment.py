"""TRL's environment: a virtual environment of pinned versions, made once in the user's cache and used from then on.

``TIEBREAK_TRL_ENV`` names an existing environment instead. ``TORCH_INDEX`` names one more package index for torch
alone, such as PyTorch's index of builds without GPU libraries, which are several GB smaller.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRL = "1.16.0"
STEPS = (("torch==2.13.0",), (f"trl=={TRL}", "peft==0.21.2"), ("-e", f"{ROOT}[train]"))
"""What is installed, in this order: torch first, for other packages would pull a build of their own choice."""


RETAINED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "THP_MEM_ALLOC_ENABLE": "1"}
"""Freed memory stays with the process, in large pages: without those glibc cannot use an aligned block again."""


class Mistake(Exception):
    """Something the user can mend, in one sentence."""


def python() -> Path:
    """Return the interpreter of an environment that has TRL, making the environment where there is none.

    Raises:
        Mistake: the named environment has no TRL, or pip could not install it.
    """
    named = os.environ.get("TIEBREAK_TRL_ENV")
    if named:
        return _checked(Path(named).expanduser())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiebreak" / f"trl-{TRL}"
    stamp, wanted = folder / "ready", _wanted()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        _make(folder)
        stamp.write_text(wanted)
    return _interpreter(folder)


def run_environment(*, retain_heap: bool) -> dict[str, str]:
    """Return the variables of a measuring process: this checkout's code, no network, and how freed memory is kept.

    With ``retain_heap`` freed memory stays with the process: where fresh pages are costly, whoever allocates most would
    otherwise pay most, and ratios would flatter the leaner side. Peak memory is measured without it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    paths = [str(ROOT / "src"), *filter(None, [kept.get("PYTHONPATH")])]
    kept |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    return kept | (RETAINED if retain_heap else {})


def in_process(
    interpreter: Path, script: str, job: Mapping[str, Any], *, title: str, retain_heap: bool, gpu: bool = False
) -> dict[str, Any]:
    """Run a script of this folder on a job in a process of its own, show its progress, and return its result.

    Raises:
        RuntimeError: the process failed; its last lines are in the message, behind ``title``.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        variables = run_environment(retain_heap=retain_heap) | {"HF_HOME": folder}
        said: list[str] = []
        with subprocess.Popen(
            [interpreter, ROOT / "benchmarks" / script, json.dumps(job), out],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=variables if gpu else variables | {"CUDA_VISIBLE_DEVICES": ""},
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("> "):
                    print(line[2:].rstrip(), flush=True)
                else:
                    said = [*said[-19:], line]
        if process.returncode or not out.is_file():
            raise RuntimeError(f"{title} ended with {process.returncode}:\n{''.join(said)}")
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _checked(folder: Path) -> Path:
    found = _interpreter(folder)
    if not found.is_file():
        raise Mistake(
            f"TIEBREAK_TRL_ENV names {folder}, which has no {found.relative_to(folder)}; name a venv with TRL."
        )
    lacking = "import importlib.util as u; print(*[n for n in ('torch', 'trl', 'tiebreak') if not u.find_spec(n)])"
    done = subprocess.run(
        [found, "-c", lacking], capture_output=True, text=True, env=run_environment(retain_heap=False), check=False
    )
    if done.returncode or done.stdout.strip():
        what = ", ".join(done.stdout.split()) or "a working Python"
        raise Mistake(f"TIEBREAK_TRL_ENV names {folder}, which lacks {what}; install trl=={TRL} there or unset it.")
    return found


def _wanted() -> str:
    """Return a hash of all that decides what is installed, so that changed pins make the environment anew."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"], project["optional-dependencies"]["train"]
    parts = [repr(STEPS), repr(needed), (ROOT / "constraints.txt").read_text(), sys.version]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _make(folder: Path) -> None:
    print(f"Making TRL's environment in {folder} (once; a minute or more).", flush=True)
    try:
        venv.create(folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Mistake(f"TRL's environment could not be made in {folder}: {error}.") from error
    index = os.environ.get("TORCH_INDEX")
    for what in STEPS:
        extra = ["--extra-index-url", index] if index and what == STEPS[0] else []
        print(f"Installing {' '.join(what)}.", flush=True)
        command = [_interpreter(folder), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "1"]
        done = subprocess.run(
            [*command, "-c", ROOT / "constraints.txt", *extra, *what], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "no reason")
            raise Mistake(
                f"TRL's environment could not be made, for pip could not install {what[-1]} ({said}); connect to a "
                "package index, or name an environment that has TRL in TIEBREAK_TRL_ENV."
            )
