"""The sentence that an error of Ray Data becomes, made as Ray Data makes it."""

import pytest
from ray.data.exceptions import SystemException, omit_traceback_stdout
from ray.exceptions import NodeDiedError, RaySystemError

from ray_jobs.failures import stage_error


@omit_traceback_stdout
def raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RaySystemError("the link broke"), "failed in a worker: System error: the link broke"),
        (NodeDiedError("the machine is gone"), "the workers of one unit died repeatedly"),
    ],
)
def test_an_error_that_is_no_users_is_named_by_its_own_words(error: Exception, expected: str) -> None:
    with pytest.raises(type(error)) as raised:
        raising(error)
    assert isinstance(raised.value.__cause__, SystemException)
    assert expected in str(stage_error("embed", [], raised.value))
