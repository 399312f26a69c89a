"""Jobs in daemon threads."""

import threading
from concurrent.futures import Future

import pytest

from gateway.threads import DaemonThreads, _run
from tests.fakes.connection import PATIENCE


def test_a_job_runs_in_a_thread_that_nobody_waits_for() -> None:
    job = DaemonThreads("reader").submit(threading.current_thread)
    thread = job.result(PATIENCE)
    assert (thread.name, thread.daemon, thread is threading.current_thread()) == ("reader", True, False)


def test_what_a_job_raises_is_raised_where_it_is_waited_for() -> None:
    job = DaemonThreads("reader").submit(int, "x")
    with pytest.raises(ValueError, match="'x'"):
        job.result(PATIENCE)


def test_a_job_that_is_called_off_in_time_is_not_begun() -> None:
    job: Future[None] = Future()
    job.cancel()
    begun: list[str] = []
    _run(job, lambda: begun.append("begun"))
    assert (begun, job.cancelled()) == ([], True)
