"""What this machine has for tiebreak, and what to do about what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

EXTRAS = {
    "train": ("torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers"),
    "hub": ("datasets", "pyarrow"),
    "report": ("matplotlib",),
    "postgres": ("psycopg",),
    "verify": ("math_verify",),
}
LEAST_FREE_GIB = 2


class Check(NamedTuple):
    """One look: what, what was found, whether it is fine, whether tiebreak cannot do without, and the cure."""

    what: str
    found: str
    fine: bool
    needed: bool
    cure: str = ""


def examine(folder: Path) -> list[Check]:
    """Look at Python, the extras, the processor, the disk and whether ``folder`` can be written."""
    checks = [
        Check(
            "Python",
            platform.python_version(),
            sys.version_info >= (3, 11),
            True,
            "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
        )
    ]
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if find_spec(name) is None]
        found = f"lacks {', '.join(missing)}" if missing else "installed"
        checks.append(
            Check(f"[{extra}]", found, not missing, False, f"pip install 'tiebreak[{extra}]'" if missing else "")
        )
    checks.append(Check("processor", f"{os.cpu_count()} cores, {platform.machine()}", True, False))
    checks.append(_accelerator())
    free = shutil.disk_usage(folder).free / 2**30
    enough = free >= LEAST_FREE_GIB
    checks.append(Check("disk", f"{free:.1f} GiB free", enough, False, "" if enough else "free some space"))
    writable = os.access(folder, os.W_OK)
    cure = "" if writable else "start from a folder you may write to"
    checks.append(Check("folder", f"{folder} {'can' if writable else 'cannot'} be written", writable, True, cure))
    key = "set" if os.environ.get("OPENAI_API_KEY") else "not set"
    checks.append(Check("OPENAI_API_KEY", key, True, False, "" if key == "set" else "needed for hosted judges only"))
    return checks


def _accelerator() -> Check:
    if find_spec("torch") is None:
        return Check("accelerator", "not looked for: torch is not installed", True, False)
    import torch

    if torch.cuda.is_available():
        return Check("accelerator", torch.cuda.get_device_name(0), True, False)
    return Check("accelerator", f"none, torch {torch.__version__} on {torch.get_num_threads()} threads", True, False)
