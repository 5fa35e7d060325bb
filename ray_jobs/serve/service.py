"""Start and stop the service on this machine; if that fails, one sentence says why."""

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayError

from dpr.encoder.cross_encoder_spec import pin_cross_encoder
from dpr.errors import DprError, ServeError
from dpr.formats.manifest import Snapshot
from dpr.formats.snapshots import live_snapshot
from dpr.recipe_service import RerankConfig, ServeConfig
from dpr.search.retrieve import question_tower
from dpr.store import Store, open_store
from ray_jobs.connect import connected, lost_processes, named_cluster
from ray_jobs.failures import quoted_error
from ray_jobs.serve.deployment import Arguments, sized_application
from ray_jobs.serve.front import AccessLog
from ray_jobs.serve.ingress import HttpOptions, ingress, is_open, own_proxy_options, wait_until_ready
from ray_jobs.serve.keys import KEYS_VARIABLE
from ray_jobs.serve.listening import Place, checked_keys, listen, numeric_address
from ray_jobs.serve.shard_deployment import LOGGING
from ray_jobs.serve.tls import tls_of
from ray_jobs.signals import on_signals, signals_restored

_TAKEN = re.compile(r"cannot bind socket \((.+?)\) for \[(.+?)\]")
"""HAProxy's message about a port that another process took after this one had found it free."""
STOP_SECONDS = 15.0
LOOK_SECONDS, MAX_CLOSED = 5.0, 12
"""Between two looks at whether the service takes connections, and how many in a row may find that it does not: Ray
starts an HAProxy that was killed again within half a minute."""


@contextmanager
def serve_store(
    store_url: str, config: ServeConfig, model: str | None = None, rerank: RerankConfig | None = None
) -> Iterator[str]:
    """Serve the live snapshot of a store while the block runs; gives the service's URL once it answers.

    Starts a Ray of its own unless this process is connected to one. Everything it started is stopped with the block,
    also when the block ends by Ctrl-C or SIGTERM. Before anything is started, it raises StoreError for a store without
    a snapshot, ServeError for an address it cannot listen at or a file it cannot use, and EncoderError for another
    model than the snapshot's, or a `rerank` model that cannot re-rank.
    """
    store = open_store(store_url)
    snapshot = live_snapshot(store)
    with listen(config.host, config.port) as listening:  # only to find out whether a server can listen there
        place = Place(numeric_address(listening), config.port, tls_of(config))
    checked_keys(config.keys_file, config.host, place.address)
    if config.access_log is not None:
        AccessLog(Path(config.access_log).absolute()).close()  # only to find out whether it can be written
    model = _absolute(model) if model else None
    question_tower(snapshot, model)
    if config.topology == "sharded":
        _check_files(snapshot, config.shards)
    arguments = replica_arguments(store, config, model, rerank)
    own_ray = not ray.is_initialized() and not named_cluster()
    with ExitStack() as stack:
        stack.enter_context(signals_restored())
        http_options = own_proxy_options(place)
        if own_ray:
            http_options = stack.enter_context(ingress(place))
        elif place.tls is not None:
            raise ServeError(
                "the Ray that runs already says itself whether it speaks TLS: in http_options of its Serve config, or "
                "by an ingress before it; leave --tls-cert and --tls-key out"
            )
        stack.enter_context(connected())
        if not own_ray and serve.status().proxies:
            raise ServeError("Ray Serve runs on this Ray already; stop it, or add the application to its Serve config")
        # a shell's background job starts with SIGINT ignored
        on_signals(signal.default_int_handler, signal.SIGINT, signal.SIGTERM)
        try:
            _start(config.replicas, http_options, arguments)
            wait_until_ready(place)
            yield place.url
        finally:
            # a further Ctrl-C now would leave processes behind
            on_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM)
            if not lost_processes():  # otherwise Serve answers nothing, and all ends with Ray
                _stop(own_ray)


def replica_arguments(store: Store, config: ServeConfig, model: str | None, rerank: RerankConfig | None) -> Arguments:
    """Return what every replica starts with, whenever and in whichever folder: a hub's `rerank` model has its commit.

    Raises EncoderError for a `rerank` model that cannot re-rank.
    """
    if rerank is not None:
        rerank = pin_cross_encoder(rerank.model_copy(update={"model": _absolute(rerank.model)}))
    return Arguments(
        store=store.url,
        model=model,
        poll_seconds=config.poll_seconds,
        keys_file=config.keys_file and os.path.abspath(config.keys_file),
        keys=os.environ.get(KEYS_VARIABLE, ""),
        access_log=config.access_log and os.path.abspath(config.access_log),
        cache_mb=config.cache_mb,
        rerank=rerank,
        shadow_share=config.shadow_share,
        topology=config.topology,
        shards=config.shards,
        shard_deadline_seconds=config.shard_deadline_seconds,
    )


def wait_for_interrupt(url: str) -> None:
    """Wait until the user or the system ends this process: Ctrl-C or SIGTERM.

    Raises ServeError if a process of Ray was ended from outside, or if the service at `url` takes no connections any
    more. Otherwise this process would go on for ever, and nobody would start the service again.
    """
    closed = 0
    try:
        while closed < MAX_CLOSED and not (lost := lost_processes()):
            time.sleep(LOOK_SECONDS)
            closed = 0 if is_open(url) else closed + 1
    except KeyboardInterrupt:
        return
    what = (
        f"{lost[0]}, a process of Ray without which nothing that fails is replaced, was ended from outside"
        if lost
        else f"the service at {url} has taken no connection for {MAX_CLOSED * LOOK_SECONDS:.0f} s"
    )
    raise ServeError(f"{what}; see whether this machine ran out of memory, and start the service again")


def _check_files(snapshot: Snapshot, shards: int) -> None:
    """Raise ServeError unless the index has a file for each shard."""
    files = len(snapshot.body.index.shards)
    if files < shards:
        raise ServeError(
            f"{shards} shards would divide the files of the index among them, and the index of snapshot "
            f"{snapshot.number} has {files}; serve with --shards {files}, or run the recipe into a new store with "
            f"index.shards: {shards}"
        )


def _absolute(model: str) -> str:
    """Return the address of a model that does not depend on the folder of this process."""
    return os.path.abspath(model) if os.path.isdir(model) else model


def _start(replicas: int, http_options: HttpOptions, arguments: Arguments) -> None:
    """Start Serve and the replicas on the connected Ray, and wait until Serve says that they run."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    processes = replicas + (arguments.shards if arguments.topology == "sharded" else 0)
    cpus = ray.cluster_resources().get("CPU", 1.0) / processes
    try:
        serve.start(proxy_location="HeadOnly", http_options=dict(http_options), logging_config=LOGGING)
        serve.run(sized_application(arguments, replicas, cpus), name="search", route_prefix="/")
    except (RayError, RuntimeError, TimeoutError) as error:
        raise _start_error(_replica_message() or str(error)) from error


def _stop(own_ray: bool) -> None:
    """Wait until replicas have finished their answers and ended, unless Ray was stopped from outside."""
    ending = threading.Thread(target=_delete, args=(own_ray,), daemon=True)
    ending.start()
    ending.join(STOP_SECONDS)


def _delete(own_ray: bool) -> None:
    # without a Ray there is nothing left to delete; AttributeError: this process left Ray in the meantime
    with suppress(RayError, RuntimeError, TimeoutError, AttributeError):
        serve.delete("search")
        if not own_ray:  # otherwise it ends with Ray
            serve.shutdown()


def _replica_message() -> str:
    """Return Serve's messages about all deployments; that of one that failed quotes its traceback."""
    application = serve.status().applications.get("search")
    return "\n".join(each.message for each in application.deployments.values()) if application else ""


def _start_error(message: str) -> DprError:
    """Return the project's own error that a message of Serve quotes, or a ServeError with the message's last line."""
    own = quoted_error(message)
    if own is not None:
        return own
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = lines[-1] if lines else "Ray gave no reason"
    if taken := _TAKEN.search(message):
        reason = f"HAProxy cannot listen at {taken[2]} ({taken[1]}); start it again"
    return ServeError(f"the service did not start: {reason}")
