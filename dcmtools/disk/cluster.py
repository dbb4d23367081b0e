"""A dask cluster as what does the work of a map (DESIGN §10)."""

import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial

from dcmtools.disk.parallel import on_executor
from dcmtools.disk.scanning import Spread
from dcmtools.model.errors import Unavailable, UsageError

_PATIENCE = 15.0
# Items for each of its threads that are under way, so that none waits for us.
_AHEAD = 3


@contextmanager
def cluster(address: str) -> Iterator[Spread]:
    """Spreads a map over the workers of the scheduler at an address such as tcp://host:8786.

    UsageError for an address of another form, or without the library; Unavailable when the scheduler does not answer.
    Paths must mean the same files on the workers. What they lose is read here.
    """
    if not address.startswith(("tcp://", "tls://")) or not address.rpartition(":")[2].isdigit():
        raise UsageError(f"--cluster {address}: is no address of a scheduler", "write tcp://HOST:PORT")
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UsageError("--cluster needs dask.distributed", "pip install 'dcmtools[cluster]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what fails, we say
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as problem:  # its time-outs are OSErrors
        reason = f"no scheduler answers at {address}"
        raise Unavailable(reason, "start it (dask scheduler), and workers for it (dask worker)") from problem
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise Unavailable(f"the scheduler at {address} has no workers", f"start some: dask worker {address}")
        deaths = (KilledWorker, CancelledError)  # the latter when the scheduler itself is gone
        try:
            yield partial(on_executor, client.get_executor(pure=False), _AHEAD * threads, deaths)
        except ImportError as problem:
            raise Unavailable(f"the workers at {address} lack dcmtools", "install it where they run") from problem
