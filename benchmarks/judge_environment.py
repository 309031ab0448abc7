"""The environments of the other sides of ``judge.py``: one each, made once in the user's cache and used from then on.

Their pins contradict each other, so they cannot share one. ``TIEBREAK_DISTILABEL_ENV`` and
``TIEBREAK_ALPACA_EVAL_ENV`` name existing environments instead.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

from environment import Mistake, _interpreter


class Peer(NamedTuple):
    """What is installed for a side; its first requirement is its pinned self, ``without`` names what that lacks."""

    needs: tuple[str, ...]
    module: str


PEERS = {
    # Imported by distilabel and not among what it says it needs: requests.
    "distilabel": Peer(("distilabel[openai]==1.5.3", "requests"), "distilabel"),
    # Imported by alpaca_eval and not among what it says it needs: pkg_resources, which newer setuptools lack.
    "alpaca_eval": Peer(("alpaca_eval==0.6.6", "setuptools<81"), "alpaca_eval"),
}


def python(name: str) -> Path:
    """Return the interpreter of a peer's environment, making the environment where there is none.

    Raises:
        Mistake: it cannot be made, or the one that is named lacks the peer.
    """
    peer, variable = PEERS[name], f"TIEBREAK_{name.upper()}_ENV"
    if named := os.environ.get(variable):
        found = _interpreter(Path(named).expanduser())
        if not found.is_file() or _says(found, "-Ic", f"import {peer.module}") is not None:
            raise Mistake(f"{variable} names {named}, where {name} cannot be imported; name another or unset it.")
        return found
    version = peer.needs[0].rpartition("==")[2]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "tiebreak" / f"{name}-{version}"
    stamp = folder / "ready"
    wanted = hashlib.sha256(repr((peer, sys.version)).encode()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        _make(name, peer, folder)
        stamp.write_text(wanted)
    return _interpreter(folder)


def _make(name: str, peer: Peer, folder: Path) -> None:
    print(f"Making {name}'s environment in {folder} (once; a minute or more).", flush=True)
    try:
        venv.create(folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Mistake(f"{name}'s environment could not be made in {folder}: {error}.") from error
    print(f"Installing {', '.join(peer.needs)}.", flush=True)
    found = _interpreter(folder)
    said = _says(found, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "1", *peer.needs)
    said = said if said is not None else _says(found, "-Ic", f"import {peer.module}")
    if said is not None:
        raise Mistake(
            f"{name} could not be installed ({said}); connect to a package index, or name an environment that has it "
            f"in TIEBREAK_{name.upper()}_ENV."
        )


def _says(*command: str | Path) -> str | None:
    """Return what a command says when it fails, its last line or pip's error, and None when it does not."""
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    if not done.returncode:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason"]
    return next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
