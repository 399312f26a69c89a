"""Threads that are not joined when the process ends."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class DaemonThreads(Executor):
    """Runs each job at once, in a daemon thread of its own called `name`; there is nothing to shut down.

    Python joins the threads of a ThreadPoolExecutor when it exits, so a job that hangs would keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def submit(self, work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Start a job."""
        job: Future[R] = Future()
        Thread(target=_run, args=(job, partial(work, *args, **kwargs)), name=self._name, daemon=True).start()
        return job


def _run(job: Future[R], work: Callable[[], R]) -> None:
    if not job.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
        job.set_exception(error)
        del job  # the error's traceback would hold it in a cycle
    else:
        job.set_result(result)
