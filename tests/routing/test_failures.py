import pytest

from gateway.routing.failures import VERDICTS, Cause, Failure, Verdict, status_failure, status_for_client, verdict

REFUSED, TIMEOUT = Failure(Cause.CONNECT_REFUSED), Failure(Cause.CONNECT_TIMEOUT)
OURS, BUSY = Failure(Cause.LOCAL_FAULT), Failure(Cause.STATUS, status=503)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 529, 599])
def test_a_status_that_may_pass_elsewhere_is_a_failure(status: int) -> None:
    failure = status_failure(status)
    assert failure == Failure(Cause.STATUS, f"status {status}", status)
    assert verdict(Failure(Cause.STATUS, status=status)) is Verdict.NEXT


@pytest.mark.parametrize(
    "status", [200, 201, 204, 400, 401, 402, 403, 404, 405, 409, 413, 415, 422, 424, 426, 428, 431]
)
def test_every_other_status_is_the_clients(status: int) -> None:
    assert status_failure(status) is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_of_its_own(status: int) -> None:
    assert status_failure(status) == Failure(Cause.REDIRECTED, f"status {status}: check the base URL", status)


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.LOCAL_FAULT])
def test_the_next_deployment_is_tried_whatever_the_endpoint_did(cause: Cause) -> None:
    assert verdict(Failure(cause)) is Verdict.NEXT


def test_a_fault_of_our_own_is_told_to_the_client() -> None:
    assert verdict(OURS) is Verdict.CLIENT


def test_a_connection_that_was_closed_while_it_lay_idle_is_tried_again() -> None:
    assert verdict(Failure(Cause.DISCONNECTED, stale=True)) is Verdict.RETRY_HERE


def test_the_table_has_every_cause() -> None:
    assert set(VERDICTS) == set(Cause)


@pytest.mark.parametrize(
    ("failures", "status"),
    [
        ((), 503),
        ((REFUSED,), 502),
        ((BUSY,), 502),
        ((TIMEOUT,), 504),
        ((TIMEOUT, TIMEOUT), 504),
        ((TIMEOUT, REFUSED), 502),
        ((REFUSED, OURS), 503),
        ((OURS, REFUSED), 502),
    ],
)
def test_the_status_for_the_client_tells_whose_fault_it_was(failures: tuple[Failure, ...], status: int) -> None:
    assert status_for_client(failures) == status
