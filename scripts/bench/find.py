#!/usr/bin/env python
"""Times `dcmtools find` on an index of a million instances, side by side with reading its lines, whole processes.

    .venv/bin/python scripts/bench/find.py [INSTANCES]      default: 1000000; needs 3 GB in the folder for temporaries

Rows of ratios, medians of five runs in turn. A scan is what the same answer costs without the view: every line decoded.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dcmtools.model.record import Record, encode

RUNS = 5
DCMTOOLS = [sys.executable, "-m", "dcmtools"]
START = [sys.executable, "-c", "import typer, sqlite3"]
SCAN = """
import sys
from typing import Any
import msgspec
decode = msgspec.json.Decoder(dict[str, Any]).decode
with open(sys.argv[1], "rb") as lines:
    print(sum(decode(line).get("SOPInstanceUID") == "1.2.3" for line in lines))
"""
JSON_SCAN = SCAN.replace("import msgspec\n", "import json\n").replace(
    "msgspec.json.Decoder(dict[str, Any]).decode", "json.loads"
)
FAMILIES = ("SMITH", "JONES", "OBRIEN", "MÜLLER", "VAN DER BERG", "GARCIA", "YAMADA", "DUPONT", "NOVAK", "ROSSI")


class Run(NamedTuple):
    """What one process took: seconds of the clock and of the processors, and its largest size in MB."""

    wall: float
    cpu: float
    peak: float


def instances(count: int) -> Iterator[Record]:
    """Made-up instances as they stand in an index: 4 studies a patient, 4 series a study, 20 to 63 images a series."""
    chance = random.Random(7)
    study = 0
    left = count
    while left:
        patient = study // 4
        known = random.Random(patient)
        study_uid = f"1.2.826.0.1.3680043.10.543.{chance.getrandbits(80)}"
        date = f"20{chance.randrange(10, 26)}{chance.randrange(1, 13):02}{chance.randrange(1, 29):02}"
        shared = {
            "StudyDate": date, "SeriesDate": date, "StudyTime": "101112.123", "SeriesTime": "101512.123",
            "AccessionNumber": f"A{study:07}", "Manufacturer": "Philips Medical Systems", "InstitutionName": "Hospital",
            "ReferringPhysicianName": f"HOUSE{patient % 40}^GREGORY", "StationName": "MR1",
            "StudyDescription": "BRAIN STUDY", "ManufacturerModelName": "Achieva",
            "PatientName": f"{known.choice(FAMILIES)}^{known.choice(('ANNA', 'BOB'))}", "PatientID": f"P{patient:06}",
            "PatientBirthDate": "19700101", "PatientSex": "F", "PatientAge": "044Y", "BodyPartExamined": "BRAIN",
            "PatientPosition": "HFS", "StudyInstanceUID": study_uid, "StudyID": str(study),
        }  # fmt: skip
        for series in range(1, 5):
            here = min(left, chance.randrange(20, 64))
            kind = {
                "Modality": chance.choice(("MR", "CT", "PT", "US")), "SeriesDescription": f"T{series}W TSE axial",
                "ProtocolName": f"T{series}W TSE", "SeriesInstanceUID": f"{study_uid}.{series}", "SeriesNumber": series,
            }  # fmt: skip
            for number in range(1, here + 1):
                yield {
                    **shared,
                    **kind,
                    **own(f"1.2.826.0.1.3680043.10.543.{chance.getrandbits(96)}", kind, study_uid, number),
                }
            left -= here
        study += 1


def own(uid: str, series: Record, study_uid: str, number: int) -> Record:
    """What an instance has for itself."""
    return {
        "type": "instance", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
        "SOPInstanceUID": uid, "AcquisitionTime": f"1016{number:02}.5", "ContentTime": f"1017{number:02}.5",
        "SliceThickness": 3.0, "RepetitionTime": 2000.0, "EchoTime": 30.0, "InstanceNumber": number,
        "ImagePositionPatient": [-100.5, -120.25, number * 3.3],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": 512, "Columns": 512,
        "PixelSpacing": [0.5, 0.5], "BitsAllocated": 16, "TransferSyntaxUID": "1.2.840.10008.1.2.1",
        "path": f"{study_uid}/{series['SeriesInstanceUID']}/{uid}.dcm", "size": 530000 + number,
        "mtime_ns": str(1700000000000000000 + number),
    }  # fmt: skip


def run(command: list[str], folder: Path) -> Run:
    """One run of a command, its output thrown away."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"DCMTOOLS_ARCHIVE": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return Run(time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def median(runs: list[Run]) -> Run:
    """The medians of times and sizes."""
    return Run(*(statistics.median(values) for values in zip(*runs, strict=True)))


def main(count: int) -> None:
    """Makes the index, times building the view once, and each query beside what it is held against."""
    with tempfile.TemporaryDirectory(prefix="dcmtools-bench-") as name:
        folder = Path(name)
        index = folder / "index.jsonl"
        with index.open("wb") as out:
            for number, record in enumerate(instances(count)):
                if number == count // 2:
                    uid = record["SOPInstanceUID"]
                out.write(encode(record))
        print(f"{count:,} instances, {index.stat().st_size / 1e6:,.0f} MB of lines")
        scan = median([run([sys.executable, "-c", SCAN, str(index)], folder) for _ in range(3)])
        plain = run([sys.executable, "-c", JSON_SCAN, str(index)], folder)
        build = run([*DCMTOOLS, "find", "--instance-uid", uid], folder)
        print(f"scan of all lines: {scan.wall:.1f} s, {scan.cpu:.1f} s CPU with msgspec; {plain.wall:.1f} s with json")
        print(f"view, built once: {build.cpu / scan.cpu:.2f}x the CPU of a scan, peak {build.peak:.0f} MB,"
              f" {(folder / 'index.sqlite').stat().st_size / 1e6:.0f} MB on disk")  # fmt: skip
        print(
            f"{'find':44} {'s':>6} {'of import typer, sqlite3':>25} {'scan takes':>11} {'json scan':>10} {'peak MB':>8}"
        )
        for words in (
            f"--level instance --instance-uid {uid}",
            "--patient-name smith*",
            "--date 20200101-20200131 --modality PT",
            "--level instance --patient-name smith*",
            "--level instance --all",
        ):
            pairs = [(run(START, folder), run([*DCMTOOLS, "find", *words.split()], folder)) for _ in range(RUNS)]
            found = median([one for _, one in pairs])
            ratio = statistics.median(one.wall / other.wall for other, one in pairs)
            print(f"{words[:44]:44} {found.wall:6.2f} {ratio:24.1f}x {scan.wall / found.wall:10.0f}x"
                  f" {plain.wall / found.wall:9.0f}x {found.peak:8.0f}")  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
