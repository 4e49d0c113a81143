"""Results and errors of every item, from this process or from several."""

import pytest

from partseg.utils.parallel import default_processes, parallel


def reciprocal(number: int) -> float:
    return 1 / number


@pytest.mark.parametrize("processes", [1, 2])
def test_every_item_comes_back_with_its_result(processes: int):
    results = dict(parallel(abs, [-1, 2, -4], processes=processes, title="x"))
    assert results == {-1: 1, 2: 2, -4: 4}


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_of_workers_come_back_too(processes: int):
    results = dict(parallel(len, ["one", 2], processes=processes, title="x"))
    assert results["one"] == 3 and isinstance(results[2], TypeError)


def test_error_is_a_result():
    results = dict(parallel(reciprocal, [0, 1], processes=1, title="x"))
    assert isinstance(results[0], ZeroDivisionError) and results[1] == 1.0


def test_number_of_processes():
    assert default_processes() >= 1
    with pytest.raises(ValueError, match="at least 1, got 0"):
        list(parallel(reciprocal, [1], processes=0, title="x"))
