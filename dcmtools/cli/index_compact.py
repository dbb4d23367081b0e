"""The subcommand `index compact`."""

from collections.abc import Iterator

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common
from dcmtools.cli.subcommand import application
from dcmtools.model.record import Record, path_keys


def index_compact(common: Common) -> None:
    """Write the index anew without what says nothing any more.

    Superseded lines, tombstones and lines that are no records go; it answers the same afterwards. Others may read it
    and write to it meanwhile; a run that is killed changes nothing.

    Example:
        dcmtools index compact --archive /data/archive --lock compact --quiet

    Exit codes:
        0   done
        66  there is no index
        73  the index cannot be written
        74  the disk is full, or cannot be written
        75  another run compacts it, or it was replaced meanwhile
    """

    def work(frame: Frame) -> Iterator[Record]:
        index = frame.index(must_exist=True)
        done = index.compact(dry_run=frame.common.dry_run)
        plan = {"state": "planned", "plan": "compacted"} if frame.common.dry_run else {"state": "compacted"}
        yield {"type": "index", **path_keys(index.file), **plan, **done._asdict()}

    run("index compact", common, work, events=False)


app = application("index compact", index_compact)
