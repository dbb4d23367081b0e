"""What the shell completes after TAB: names of nodes, keys of queries. A completion never fails and never talks."""

from collections.abc import Iterator
from contextlib import suppress


def complete_nodes(incomplete: str) -> list[tuple[str, str]]:
    """The nodes whose name goes on like the word, or like its part behind the last comma."""
    done, comma, begun = incomplete.rpartition(",")
    return [(done + comma + name, about) for name, about in _nodes() if name.casefold().startswith(begun.casefold())]


def complete_keys(incomplete: str) -> list[str]:
    """The keywords that queries know, each with its equals sign."""
    from dcmtools.model.keys import QUERY_BY_KEYWORD

    return [f"{keyword}=" for keyword in QUERY_BY_KEYWORD if keyword.startswith(incomplete)]


def _nodes() -> Iterator[tuple[str, str]]:
    with suppress(Exception):  # a broken nodes.ini: here a message would land in the command line
        from dcmtools.disk.registry import read_registry

        for node in read_registry().nodes:  # as far as the files can be read
            yield node.name, node.description or node.where
