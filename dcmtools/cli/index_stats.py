"""The subcommand `index stats`."""

from collections.abc import Iterator

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common
from dcmtools.cli.subcommand import application
from dcmtools.model.record import Record


def index_stats(common: Common) -> None:
    """Tell how much the index holds: patients, studies, series, instances, bytes, dates.

    Modalities are counted in instances. superseded_lines are those on which neither
    a file nor an event stands any more.

    Example:
        dcmtools index stats --archive /data/archive | jq .instances

    Exit codes:
        0   told
        66  there is no index
        74  the index cannot be read
    """

    def work(frame: Frame) -> Iterator[Record]:
        yield frame.index(must_exist=True).statistics()

    run("index stats", common, work, effects=False)


app = application("index stats", index_stats)
