"""Whether losses, gradients and weights equal TRL's: runs tests/parity in TRL's environment.

``python benchmarks/parity.py [PYTEST ARGUMENTS]`` makes TRL's environment itself. That has TRL's own versions of all it
needs; pytest and what the tests use besides come from the environment this is started in, behind them.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys

from environment import ROOT, Mistake, python

START = "import sys, pytest; sys.path[:0] = {first}; sys.exit(pytest.main({given}))"


def main() -> int:
    """Run the tests; the exit code is pytest's."""
    try:
        interpreter = python()
    except Mistake as error:
        print(error, file=sys.stderr)
        return 1
    given = ["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "parity"), *sys.argv[1:]]
    last = f"import sys; sys.path += {site.getsitepackages()}; "
    code = last + START.format(first=[str(ROOT / "src"), str(ROOT)], given=given)
    done = subprocess.run([str(interpreter), "-c", code], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
