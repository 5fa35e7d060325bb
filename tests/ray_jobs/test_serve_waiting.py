"""`dpr serve` runs until it is told to stop, or until its address no longer accepts connections."""

import _thread
import re
import signal
import socket
import threading

import pytest

from dpr.errors import ServeError
from ray_jobs.signals import on_signals, signals_restored

pytestmark = [
    pytest.mark.without_ray,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning"),  # Ray Serve's own
]


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_jobs.serve import service

    monkeypatch.setattr(service, "LOOK_SECONDS", 0.01)


def test_a_service_that_is_gone_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_jobs.serve import service

    seen = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        plain = service.is_open

        def is_open(asked: str) -> bool:
            answer = plain(asked)
            if answer and not seen.is_set():
                seen.set()
                listening.close()
            return answer

        monkeypatch.setattr(service, "is_open", is_open)
        with pytest.raises(ServeError, match=f"^the service at {re.escape(url)} has taken no connection for 0 s; see"):
            service.wait_for_interrupt(url)
    assert seen.is_set()


def test_a_service_that_listens_is_waited_for_until_the_user_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_jobs.serve import service

    monkeypatch.setattr(service, "MAX_CLOSED", 1)
    looks: list[bool] = []
    plain = service.is_open

    def is_open(asked: str) -> bool:
        looks.append(plain(asked))
        if len(looks) == 20:
            _thread.interrupt_main()
        return looks[-1]

    monkeypatch.setattr(service, "is_open", is_open)
    with signals_restored(), socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=64) as listening:
        on_signals(signal.default_int_handler, signal.SIGINT)  # a test of Ray Train may have left another handler
        service.wait_for_interrupt(f"https://[::1]:{listening.getsockname()[1]}")
    assert looks == [True] * 20
