"""A worker whose clock on the wall jumps: `python -m tests.jumping worker …` is the real one, but for `time.time`.

The file `offset` in the folder URL2VEC_TEST_FOLDER says by how many seconds it is off, from the moment it is written.
"""

import os
import time
from pathlib import Path

_real, _real_ns = time.time, time.time_ns
_file = Path(os.environ.get("URL2VEC_TEST_FOLDER", ".")) / "offset"
_LOOK_S = 0.05


class _Wall:
    """The clock on the wall; looks at the file now and then."""

    def __init__(self) -> None:
        self._looked_at, self._offset_s = -1.0, 0.0

    def offset_s(self) -> float:
        now = time.monotonic()
        if now - self._looked_at > _LOOK_S:
            self._looked_at, self._offset_s = now, float(_file.read_text()) if _file.exists() else 0.0
        return self._offset_s


def jump(folder: Path, seconds: float) -> None:
    """For the test: from now on the clock is off by so much."""
    new = folder / "offset.new"
    new.write_text(str(seconds))
    new.rename(folder / "offset")


if __name__ == "__main__":
    wall = _Wall()
    time.time = lambda: _real() + wall.offset_s()
    time.time_ns = lambda: _real_ns() + int(wall.offset_s() * 1e9)

    from streams.cli import main

    main()
