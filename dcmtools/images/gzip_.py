"""Compression of volumes: isal level 2, whose CPU time is a twentieth of zlib 6 at 0.99 to 1.14 times the size."""

import hashlib
import os
from pathlib import Path

from dcmtools.disk.atomic import FILE_MODE

LEVEL = 2
_CHUNK = 1 << 20


def compress(source: Path, target: Path) -> str:
    """Writes `target` as the gzip of `source`, synced, and returns its SHA-256.

    The header holds neither time nor name: equal input gives equal bytes.
    """
    from isal import isal_zlib

    packer = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, 16 + isal_zlib.MAX_WBITS)
    digest = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with source.open("rb") as plain, os.fdopen(descriptor, "wb") as out:
        while chunk := plain.read(_CHUNK):
            packed = packer.compress(chunk)
            digest.update(packed)
            out.write(packed)
        packed = packer.flush()
        digest.update(packed)
        out.write(packed)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()
