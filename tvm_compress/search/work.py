"""Running jobs on an executor, each once: what is in the log is not run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

from tvm_compress import pipeline
from tvm_compress.search.log import TrialLog

__all__ = ["Here", "Job", "Work"]


class Here(Executor):
    """Runs each job in this process when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the job; the future is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # Ctrl-C goes on at once
            future.set_exception(error)
        return future


@dataclass(frozen=True, eq=False)
class Job:
    """A call for the executor; ``key`` names its result for good, ``what`` tells people."""

    key: str
    what: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Work:
    """Where jobs run and where their results are kept."""

    executor: Executor
    log: TrialLog
    progress: bool

    def run(self, todo: Sequence[Job]) -> list[dict[str, Any]]:
        """Give the results in the order of the jobs; each is logged when it comes in.

        Raises:
            Exception: what a job raised; those that have not begun are cancelled.
        """
        running: dict[Future[dict[str, Any]], Job] = {}
        try:
            for job in todo:
                if self.log.get(job.key) is None:
                    running[self.executor.submit(job.function, *job.arguments)] = job
                    self._collect(running, {future for future in running if future.done()})
            while running:
                self._collect(running, wait(running, return_when=FIRST_COMPLETED).done)
        finally:
            for future in running:
                future.cancel()
        found = [self.log.get(job.key) for job in todo]
        return [result for result in found if result is not None]

    def _collect(
        self, running: dict[Future[dict[str, Any]], Job], done: set[Future[dict[str, Any]]]
    ) -> None:
        for future in done:
            job = running.pop(future)
            result = future.result()
            self.log.add(job.key, job.what, result)
            if self.progress:
                pipeline.say(f"{job.what}{_figures(result)}")


def _figures(result: Mapping[str, Any]) -> str:
    """Tell the numbers of a result.

    >>> _figures({"accuracy": 0.9812, "weight_bytes": 12345, "module": "..."})
    ': accuracy 98.12 %, weight_bytes 12,345'
    """
    parts = []
    for name, value in result.items():
        if isinstance(value, float):
            parts.append(f"{name} {100 * value:.2f} %")
        elif isinstance(value, int):
            parts.append(f"{name} {value:,}")
        elif value is None:
            parts.append("does not fit the board")
    return f": {', '.join(dict.fromkeys(parts))}" if parts else ""
