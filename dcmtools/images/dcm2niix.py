"""The engine dcm2niix: its binary called directly, one process a series, into an empty folder.

Measured right in 224 of 224 series but gantry-tilted CT and mosaics without their vendor's header, and 4 to 27 times
faster than dicom2nifti. It is not trusted: the audit looks at what it wrote.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dcmtools.images.engine import Finished, Limits, Output, Run, memory_limit, run_child
from dcmtools.images.staging import Staged
from dcmtools.model.errors import ConfigurationError, from_os
from dcmtools.model.record import Record

OLDEST = 20230101  # older ones put tilted CT elsewhere, crash on 1-bit images and cannot read JPEG-LS
_NAME = "s"
# -g i: no defaults file from the home folder; -z n: we compress; -ba n: the sidecar keeps the identity, as the index
# does; -i n: derived and 2D images too; -m 2: join what belongs together; -w 2: with -w 1 it overwrites its own
# volumes inside one series; -l o: original grey values; -p y: Philips' precise scaling.
ARGUMENTS = ("-g", "i", "-z", "n", "-b", "y", "-ba", "n", "-i", "n", "-m", "2", "-w", "2", "-l", "o", "-p", "y")
_VERSION = re.compile(r"\b(?:v1\.0\.|1\.0\.)(\d{8})\b")
_LINES = re.compile(r"\n|(?=Convert \d+ DICOM as )")  # some of its warnings forget their newline
_DERIVED = re.compile(r"_(Tilt|Eq|ROI)(?=_|\d|\Z)")
# What it says, in order of weight, and our code for it.
_CAUSES: tuple[tuple[str, str], ...] = (
    ("File not large enough", "truncated"),
    ("FileSize <", "truncated"),
    ("Unsupported transfer syntax", "unsupported-transfer-syntax"),
    ("Unsupported DICOM bit-depth", "unsupported-pixels"),
    ("failed to read image", "undecodable"),
    ("Failed to decode", "undecodable"),
    ("header corrupted", "undecodable"),
    ("failed to decompress", "undecodable"),
    ("memory", "out-of-memory"),
    ("bad_alloc", "out-of-memory"),
    ("may be missing", "missing-slices"),
    ("not divisible by number of repeats", "missing-slices"),
    ("Only able to make equidistant slices", "uneven-slices"),
    ("number of slices not specified", "mosaic-unverified"),
    ("Guessing this is a mosaic", "mosaic-unverified"),
    ("Unable to find any DICOM", "no-image"),
    ("No valid DICOM", "no-image"),
)
_DOUBTS = frozenset({"missing-slices", "mosaic-unverified"})  # it says these, writes all the same, and ends with 0
# Said of every series without the vendor's private header: nothing that a reader of the record could act on.
_NOISE = ("Empty protocol name", "Instance number (0020,0013) not found", "Missing GE protocol data block")
_MOST_WARNINGS = 12


@dataclass(frozen=True, slots=True)
class Dcm2niix:
    """The binary and its version."""

    binary: Path
    version: str
    name: str = "dcm2niix"
    arguments: tuple[str, ...] = ARGUMENTS

    @classmethod
    def found(cls, binary: Path | None = None) -> "Dcm2niix":
        """The installed binary, or the one given; its version is checked.

        Raises:
            ConfigurationError: it is not there, or from before 2023.
        """
        version = _version_of(binary) if binary else _installed_version()
        date = _VERSION.search(version)
        if not date or int(date[1]) < OLDEST:
            raise ConfigurationError(
                f"dcm2niix {version or '(no version)'} is too old: those from before 2023 are wrong in known cases",
                "install the package dcm2niix anew",
            )
        return cls(binary or _installed_binary(), f"1.0.{date[1]}")

    def run(self, staged: Staged, source: Record, limits: Limits) -> Run:  # noqa: ARG002 - the files say all
        """Converts the staged series."""
        command = [str(self.binary), *self.arguments, "-f", _NAME, "-o", "out", str(staged.inputs)]
        limits = replace(limits, memory=memory_limit(staged.pixel_bytes, limits))
        end = run_child(command, staged, limits)
        outputs = tuple(_outputs(staged.outputs))
        return Run(outputs, tuple(_warnings(end.text)), *_cause(end, has_outputs=bool(outputs)))


def _outputs(folder: Path) -> Iterator[Output]:
    """The volumes in a folder; one that was resampled or drawn has the sidecar of that which it is named after."""
    sidecars = {path.stem: path for path in folder.glob("*.json")}
    for image in sorted(folder.glob("*.nii")):
        own = sidecars.get(image.stem)
        akin = [stem for stem in sidecars if image.stem.startswith(stem)]
        nearest = own or (sidecars[max(akin, key=len)] if akin else None)
        gradients = {kind: image.with_suffix(f".{kind}") for kind in ("bval", "bvec")}
        yield Output(
            image,
            suffix=image.stem.removeprefix(_NAME),
            header=_header(nearest) if nearest else {},
            gradients={kind: path for kind, path in gradients.items() if path.exists()},
            derived=bool(_DERIVED.search(image.stem)),
        )


def _header(sidecar: Path) -> dict[str, object]:
    text = sidecar.read_bytes().decode("utf-8", "replace")
    try:
        header = json.loads(text, strict=False, parse_constant=lambda _: None)  # it writes nan where it divided by zero
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


def _cause(end: Finished, *, has_outputs: bool) -> tuple[str, str]:
    """Our code for what went wrong, and the words that said it: a whole line may quote a protocol or a path."""
    well = has_outputs and end.code == 0
    for words, cause in _CAUSES:
        if words in end.text and (not well or cause in _DOUBTS):
            return cause, f"dcm2niix says: {words}"
    if well:
        return "", ""
    return "engine-failed", f"dcm2niix ended with code {end.code}{'' if has_outputs else ' and wrote no volume'}"


def _warnings(text: str) -> list[str]:
    lines = [_plain(line) for line in _LINES.split(text) if line.startswith(("Warning:", "Error:"))]
    told = dict.fromkeys(line for line in lines if not line.startswith(_NOISE))
    return list(told)[:_MOST_WARNINGS]


def _plain(line: str) -> str:
    """A line without its label and without the names of files, which say nothing afterwards."""
    line = re.sub(r"\A(Warning|Error):\s*", "", line.strip())
    return re.sub(r":? /.*", "", line).rstrip(" :")


def _installed_binary() -> Path:
    try:
        import dcm2niix  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError("the package dcm2niix is not installed", "install it: pip install dcm2niix") from None
    return Path(dcm2niix.bin)


def _installed_version() -> str:
    """The version of the installed package, which carries the binary: no process is started to ask."""
    from importlib import metadata

    try:
        return metadata.version("dcm2niix")
    except metadata.PackageNotFoundError:
        raise ConfigurationError("the package dcm2niix is not installed", "install it: pip install dcm2niix") from None


def _version_of(binary: Path) -> str:
    command = [str(binary), "--version"]
    try:
        said = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=False)
    except OSError as problem:
        raise ConfigurationError(str(from_os(problem, "starting", binary)), "check the path of dcm2niix") from None
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"{binary} does not tell its version", "check the path of dcm2niix") from None
    return (said.stdout + said.stderr).decode("utf-8", "replace").strip().rpartition("\n")[2]
