"""Work side by side in processes: what stands in one queue is done one after another, several queues at once.

A process ends with the one that started it, however that came to its end, so that nothing works on in a folder that
the next run takes up.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

from tiebreak.records import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Item], Result],
    queues: Sequence[Sequence[Item]],
    jobs: int,
    known: Callable[[Item], Result | None] = lambda _item: None,
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with what ``work`` makes of it, as they end; at most ``jobs`` queues are worked on at once.

    Args:
        work: is called in another process, so it and what it takes and returns can be pickled.
        queues: the items.
        jobs: processes.
        known: asked here before an item is handed out; what it returns is the item's result, if it is not None.

    Raises:
        InputError: ``work`` raised one, or a process came to its end by itself.
    """
    waiting = deque(deque(queue) for queue in queues if queue)
    lanes: list[_Lane[Item, Result]] = [_Lane(work) for _ in range(min(jobs, len(waiting)))]
    free = list(lanes)
    try:
        while True:
            for lane in free:
                while (item := lane.next(waiting)) is not None:
                    if (result := known(item)) is None:
                        lane.give(item)
                        break
                    yield item, result
            busy = {lane.pipe: lane for lane in lanes if lane.item is not None}
            if not busy:
                return
            free = [busy[pipe] for pipe in wait(list(busy)) if isinstance(pipe, Connection)]
            for lane in free:
                yield lane.take()
    finally:
        for lane in lanes:
            lane.close()


class _Lane(Generic[Item, Result]):
    """A process that does one thing after another."""

    def __init__(self, work: Callable[[Item], Result]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of torch half
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.queue: deque[Item] = deque()
        self.item: Item | None = None

    def next(self, waiting: deque[deque[Item]]) -> Item | None:
        """Take the next item of its queue, or of the next queue that nobody works on."""
        if not self.queue and waiting:
            self.queue = waiting.popleft()
        return self.queue.popleft() if self.queue else None

    def give(self, item: Item) -> None:
        """Hand out an item."""
        self.item = item
        self.pipe.send(item)

    def take(self) -> tuple[Item, Result]:
        """Take back the result."""
        item, self.item = self.item, None
        assert item is not None
        try:
            found = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise InputError(
                "A process came to its end by itself, as one does that runs out of memory; run the same command again, "
                "with fewer jobs."
            ) from error
        if isinstance(found, InputError):
            raise found
        return item, found

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _serve(work: Callable[[Item], Result], pipe: Connection) -> None:
    """Work on what comes through the pipe until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is told to the parent, which ends this process
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(work(item))
        except InputError as error:
            pipe.send(error)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns when it is gone, by kill -9 too
        os._exit(1)
