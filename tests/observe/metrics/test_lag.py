from gateway.observe.metrics.lag import INTERVAL, LoopLag
from tests.observe.metrics.reading import Clock
from tests.running import until


async def test_what_a_timer_comes_too_late_is_counted() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    lag.start()
    for late in (0.0, 0.3, -0.0005):
        clock.now += INTERVAL + late
        lag._sample()
        assert lag._timer is not None
    lag.stop()
    assert sum(lag.seen._counts) == 3
    assert abs(lag.seen._sum - 0.3) < 1e-9


async def test_it_samples_until_it_is_stopped() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    lag.start()
    await until(lambda: sum(lag.seen._counts) == 2)
    lag.stop()
    assert lag._timer is not None
    assert lag._timer.cancelled()


def test_what_never_started_can_be_stopped() -> None:
    LoopLag(Clock()).stop()
