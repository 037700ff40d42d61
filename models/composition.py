"""Where an unseen URL may stand: with the URLs that share most of its address.

The simplest composition that makes sense of a site: the longest prefix (query dropped, then the path segment by segment,
then the host alone) under which anything is known; its URLs' vectors, averaged by how much they were seen. A start, to be
measured against better ones; it says which prefix it used, so that nobody takes it for something that was learned.
"""

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

MOST_RELATIVES = 1_000  # a mean of more says no more


def prefixes(url: str) -> Iterator[str]:
    """Ever shorter addresses that contain the URL, down to its host: none where it has no host."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    if not parts.netloc:
        return
    root = f"{parts.scheme}://{parts.netloc}"
    segments = [segment for segment in parts.path.split("/") if segment]
    for kept in range(len(segments), -1, -1):
        yield "/".join([root, *segments[:kept]]) + ("/" if kept < len(segments) else "")


def relatives(url: str, names: Sequence[str]) -> tuple[str, list[int]]:
    """The longest prefix of the URL under which any of `names` stands, and the rows of those that do; ("", []) for none."""
    for prefix in prefixes(url):
        rows = [row for row, name in enumerate(names) if name.startswith(prefix)]
        if rows:
            return prefix, rows[:MOST_RELATIVES]
    return "", []
