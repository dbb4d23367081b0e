"""How much an index holds, by its view."""

import sqlite3
from collections import Counter

from dcmtools.model.record import Record, decode

_LIVE = "SELECT count(DISTINCT patient), count(DISTINCT study), count(DISTINCT series) FROM part WHERE instances"


def counts_of(view: sqlite3.Connection) -> Record:
    """Lines, files, patients, studies, series, instances, their bytes, dates and modalities (in instances)."""
    lines, bad = view.execute("SELECT lines, bad FROM state").fetchone()
    (rows,) = view.execute("SELECT count(*) FROM instance").fetchone()
    (events,) = view.execute("SELECT count(*) FROM event").fetchone()
    patients, studies, series = view.execute(_LIVE).fetchone()
    modalities: Counter[str] = Counter()
    dates: set[str] = set()
    instances = size = 0
    for text, count, extent in view.execute("SELECT record, instances, size FROM part WHERE instances"):
        record = decode(text)
        modalities[str(record.get("Modality") or "")] += count
        dates.add(str(record.get("StudyDate") or ""))
        instances, size = instances + count, size + extent
    known = sorted(dates - {""})
    return {
        "lines": lines,
        "superseded_lines": lines - bad - rows - events,
        "bad_lines": bad,
        "events": events,
        "files": rows,
        "patients": patients,
        "studies": studies,
        "series": series,
        "instances": instances,
        "size": size,
        "date_range": "-".join(dict.fromkeys((known[0], known[-1]))) if known else None,
        "modalities": dict(modalities.most_common()),
    }
