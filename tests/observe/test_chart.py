from gateway.observe.chart import WINDOW, Chart
from gateway.observe.live import KEPT, Live
from tests.observe.outcomes import attempt, count, ended


def watched() -> tuple[Live, Chart, list[float]]:
    now = [1000.5]
    live = Live(lambda: now[0])
    return live, Chart(live), now


def test_a_row_is_made_once_its_second_is_over() -> None:
    live, chart, now = watched()
    count(live, ended(attempt("a", "server_error"), attempt("b"), tokens=7, first=100.0))
    assert chart.advance(now[0]) == []
    now[0] = 1002.1
    [one, two] = chart.advance(now[0])
    assert one[:5] == (1000, 1, 0, 1, 7)
    assert two[:5] == (1001, 0, 0, 0, 0)
    assert chart.advance(now[0]) == []
    assert chart.rows[0] is one


def test_percentiles_look_back_over_a_window() -> None:
    live, chart, now = watched()
    count(live, ended(first=100.0))
    now[0] += WINDOW + 1
    *within, after = chart.advance(now[0])
    assert {round(row[5] or 0, -1) for row in within} == {100.0}
    assert len(within) == WINDOW
    assert after[5:] == (None, None)


def test_what_nobody_looked_at_is_made_up_for_as_far_as_it_is_kept() -> None:
    live, chart, now = watched()
    now[0] += 10_000
    count(live, ended())
    now[0] += 2
    rows = chart.advance(now[0])
    assert len(rows) == KEPT
    assert (rows[0][0], rows[-1][0]) == (int(now[0]) - KEPT, int(now[0]) - 1)
    assert sum(row[1] for row in rows) == 1
    assert list(chart.rows) == rows


def test_a_clock_that_goes_back_makes_no_row_twice() -> None:
    live, chart, now = watched()
    count(live, ended())
    assert len(chart.advance(now[0] + 5)) == 5
    assert chart.advance(now[0]) == []


def test_a_clock_that_goes_back_far_begins_anew() -> None:
    live, chart, now = watched()
    count(live, ended())
    chart.advance(now[0] + 5)
    now[0] -= 500
    assert chart.advance(now[0]) == []
    count(live, ended())
    count(live, ended())
    now[0] += 2
    assert [row[:2] for row in chart.advance(now[0])] == [(500, 2), (501, 0)]
    assert len(chart.rows) == 2


def test_a_window_is_so_many_seconds_and_none_that_comes() -> None:
    live, chart, now = watched()
    count(live, ended(first=100.0))
    now[0] += WINDOW
    count(live, ended(first=100_000.0))
    now[0] += 1
    rows = chart.advance(now[0])
    assert [round(row[6] or 0, -1) for row in rows[:-1]] == [100] * WINDOW
    assert (rows[-1][0], round(rows[-1][6] or 0, -4)) == (1000 + WINDOW, 100_000)


def test_a_row_tells_both_percentiles_of_its_window() -> None:
    live, chart, now = watched()
    for _ in range(98):
        count(live, ended(first=100.0))
    for _ in range(2):
        count(live, ended(first=800.0))
    now[0] += 2
    busy, quiet = chart.advance(now[0])
    assert [round(each or 0, -1) for each in busy[5:]] == [100, 810]
    assert busy[5:] == quiet[5:]
