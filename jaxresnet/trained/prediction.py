"""Predicting many pictures: read ahead in threads, computed in batches of one size, told in their order."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from jaxresnet.errors import UserError
from jaxresnet.trained.load import TrainedNetwork

AHEAD = 2
"""Batches that are read while the network computes one. More would need more memory and save no time."""


def predict_files(
    network: TrainedNetwork,
    files: Iterable[str],
    read: Callable[[str], np.ndarray],
    batch_size: int,
    threads: int,
) -> Iterator[tuple[str, np.ndarray | UserError]]:
    """For each of `files` in order: its name and the probabilities of its classes, float32 [classes].

    `read` makes an image, uint8 [H, W, C], of a name. It is called in `threads` threads, for at most AHEAD + 1 batches
    more than were told. If it raises UserError, or the probabilities are not finite, that error is told in their place.
    The network computes `batch_size` images at a time, so it is compiled once.
    """
    images = np.zeros((batch_size, *network.info.image_shape), np.uint8)
    results = _read_ahead(read, files, AHEAD * batch_size, threads)
    while batch := list(itertools.islice(results, batch_size)):
        readable = [image for _, image in batch if not isinstance(image, UserError)]
        images[: len(readable)] = readable or 0
        probabilities = iter(np.asarray(network.probabilities(images)) if readable else ())
        for file, image in batch:
            yield file, image if isinstance(image, UserError) else _finite(file, next(probabilities))


def _read_ahead(
    read: Callable[[str], np.ndarray], files: Iterable[str], ahead: int, threads: int
) -> Iterator[tuple[str, np.ndarray | UserError]]:
    """Each file with what `read` returns or raises for it, in order; read in threads, the next `ahead` in advance."""
    pool = ThreadPoolExecutor(threads)
    names = iter(files)

    def start(number: int) -> list[tuple[str, Future[np.ndarray]]]:
        return [(name, pool.submit(read, name)) for name in itertools.islice(names, number)]

    try:
        waiting = deque(start(ahead))
        while waiting:
            name, future = waiting.popleft()
            waiting.extend(start(1))
            try:
                yield name, future.result()
            except UserError as error:
                yield name, error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _finite(file: str, probabilities: np.ndarray) -> np.ndarray | UserError:
    if np.isfinite(probabilities).all():
        return probabilities
    return UserError(
        f"{file}: expected finite probabilities, found others: the network's weights are too large"
    )


def fitting_batch_size(largest: int, files: int, devices: int) -> int:
    """The number of images in a batch: at most `largest`, and for few files the next power of two.

    So a later command finds its program in the cache more often. It is rounded up to a multiple of the devices.

    >>> [fitting_batch_size(128, files, 2) for files in (1, 2, 3, 100, 1000)]
    [2, 2, 4, 128, 128]
    """
    enough = min(largest, 1 << (files - 1).bit_length())
    return -(-enough // devices) * devices
