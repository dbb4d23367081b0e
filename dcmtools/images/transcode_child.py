"""The process that transcodes: a request a line on stdin, an answer a line on stdout, under a limit of memory."""

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcmtools.model.errors import BadData, DcmtoolsError, from_os
from dcmtools.model.record import Record, decode, encode, path_of
from dcmtools.model.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
)

if TYPE_CHECKING:
    import numpy as np
    from pydicom import Dataset

JPEG_2000_LOSSLESS, JPEG_2000, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.5"
_NATIVE = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
_COMPRESSED = (JPEG_2000_LOSSLESS, RLE)
# Words of so many bytes, in the values of these representations, are turned round in big endian (PS3.5 7.3).
_WORDS = {"OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}
_RATIO = 10


def main() -> None:
    """Answers requests until there are no more."""
    _limit(int(sys.argv[1]))
    out, sys.stdout = os.dup(1), sys.stderr
    os.dup2(2, 1)  # what a decoder prints is no answer
    for line in sys.stdin.buffer:
        os.write(out, encode(_answer(decode(line))))


def transcode(source: Path, copy: Path, syntaxes: Iterable[str], *, lossy: bool = False) -> str:
    """Writes a copy in the best of these transfer syntaxes that is possible, and returns that; BadData otherwise."""
    import numpy as np
    from pydicom import dcmread

    made = dcmread(source, force=True)
    values: np.ndarray[Any, Any] | None = None
    before = str(made.file_meta.get("TransferSyntaxUID", ""))
    chosen: str = _chosen(made, list(syntaxes), lossy=lossy)
    if before not in {*_NATIVE, EXPLICIT_VR_BIG_ENDIAN}:
        _decompress(made)
    elif before == EXPLICIT_VR_BIG_ENDIAN:
        _turn_words(made)
    if chosen not in _NATIVE:
        values = _compress(made, chosen)
    _write(made, copy, chosen)
    if values is not None and chosen != JPEG_2000 and not np.array_equal(values, dcmread(copy).pixel_array):
        raise BadData("its pixels do not come back as they were when they are compressed", cause="not-transcoded")
    return chosen


def _answer(asked: Record) -> Record:
    try:
        source = path_of(asked)
        syntax = transcode(source or Path(), Path(asked["copy"]), asked["syntaxes"], lossy=asked["lossy"])
    except DcmtoolsError as problem:
        return problem.record()
    except OSError as problem:
        return from_os(problem, "transcoding", str(asked["path"])).record()
    except Exception as problem:  # noqa: BLE001 - the door of a worker: decoders raise whatever they like
        words = f"{asked['path']}: its pixels cannot be transcoded ({type(problem).__name__})"
        return BadData(words, "see whether another program can read it", cause="not-transcoded").record()
    return {"type": "file", "TransferSyntaxUID": syntax}


def _chosen(made: "Dataset", syntaxes: Sequence[str], *, lossy: bool) -> str:
    """The transfer syntax to use: uncompressed where possible, then one that loses nothing."""
    possible: list[str] = [*_NATIVE, *(_COMPRESSED if "PixelData" in made else ())]
    if lossy and "PixelData" in made:
        possible.append(JPEG_2000)
    for syntax in possible:
        if syntax in syntaxes:
            return syntax
    words = " or ".join(TRANSFER_SYNTAXES.get(one, one) for one in syntaxes)
    raise BadData(
        f"it cannot be transcoded to {words}", "have the peer take an uncompressed one", cause="not-transcoded"
    )


def _decompress(made: "Dataset") -> None:
    if "PixelData" in made:
        if made.get("BitsAllocated") == 1:
            raise BadData("compressed pixels of one bit cannot be transcoded", cause="not-transcoded")
        made.decompress(generate_instance_uid=False)


def _compress(made: "Dataset", syntax: str) -> "np.ndarray[Any, Any]":
    """Compresses the pixels, and returns the values that they have."""
    values = made.pixel_array
    if made.get("PlanarConfiguration") == 1:
        made.PlanarConfiguration = 0  # as the values lie now
    if syntax != JPEG_2000:
        made.compress(syntax, values, generate_instance_uid=False)
        return values
    made.compress(syntax, values, j2k_cr=[_RATIO], generate_instance_uid=True)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.LossyImageCompression = "01"  # PS3.3 C.7.6.1.1.5
    made.LossyImageCompressionRatio = _RATIO
    made.LossyImageCompressionMethod = "ISO_15444_1"
    made.ImageType = ["DERIVED", *list(made.get("ImageType") or ["", "SECONDARY"])[1:]]
    return values


def _turn_words(made: "Dataset") -> None:
    """Turns the words of binary values round: pydicom leaves them as they were written."""
    import numpy as np

    for element in made.iterall():
        if (size := _WORDS.get(element.VR)) and isinstance(element.value, bytes):
            element.value = np.frombuffer(element.value, f">u{size}").astype(f"<u{size}").tobytes()


def _write(made: "Dataset", copy: Path, syntax: str) -> None:
    from pydicom import dcmwrite
    from pydicom.uid import UID

    made.decode()
    made.file_meta.TransferSyntaxUID = UID(syntax)
    implicit = syntax == IMPLICIT_VR_LITTLE_ENDIAN
    dcmwrite(copy, made, implicit_vr=implicit, little_endian=True, enforce_file_format=True, overwrite=True)


def _limit(memory: int) -> None:
    import resource

    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):  # a stricter limit of the system's stays; macOS knows no RLIMIT_AS
            resource.setrlimit(kind, (most, most))
