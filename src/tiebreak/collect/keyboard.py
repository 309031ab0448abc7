"""One key at a time from a terminal, one line at a time from anything else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

END = "\x04"
"""What reading gives where the input has ended (Ctrl-D on a terminal)."""


class Keyboard:
    """Keys and lines of ``stream``: on a terminal a key counts as it is pressed; elsewhere a line is a key.

    So the same questions can be answered by a person, and by a file or a program through a pipe.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream: TextIO = stream or sys.stdin

    @property
    def live(self) -> bool:
        """Whether somebody sits at a terminal."""
        return self._stream.isatty()

    def key(self) -> str:
        """Return the next key in lower case, :data:`END` where there is none; blank lines of a file are passed over."""
        if self.live:
            with _one_at_a_time(self._stream):
                return self._stream.read(1).lower() or END
        for line in iter(self._stream.readline, ""):
            if line.strip():
                return line.strip()[0].lower()
        return END

    def line(self) -> str:
        """Return the next line without its end, nothing where the input has ended."""
        return self._stream.readline().rstrip("\r\n")


@contextmanager
def _one_at_a_time(stream: TextIO) -> Iterator[None]:
    """Let the terminal hand over each key unechoed, and give it back as it was, whatever happens; Ctrl-C still stops.

    Only POSIX terminals can; elsewhere a key needs Enter behind it.
    """
    try:
        import termios
        import tty
    except ImportError:
        yield
        return
    place = stream.fileno()
    before = termios.tcgetattr(place)
    try:
        tty.setcbreak(place, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(place, termios.TCSANOW, before)
