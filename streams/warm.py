"""`python -m streams.warm`: compile the loops once, after an installation, so that the first start does not have to.

What is compiled is kept beside the modules; where that folder cannot be written, numba looks for another place.
"""

import shutil
import sys

from models.compiled import OTHERS, PREFIX, SOURCES, cache_folder
from models.learner import Learner
from models.settings import ModelSettings
from schemas.records import WebVisit
from streams.sessions import Sessioniser
from streams.visitors import VisitorTable


def warm_up(learner: Learner) -> None:
    """Compile, or load, every loop that a worker needs, so that no visit waits for it. Changes nothing."""
    learner.warm_up()
    table, visit = VisitorTable(), WebVisit(event_id="e", timestamp_ms=1, visitor_id="v", url="https://warm.example/")
    table.load(["v"], {})
    Sessioniser(1).take_in(table, [visit], 0)
    table.load(["v"], table.dirty())


def main() -> None:
    """Compile everything that scoring and learning need; throw away what was compiled of other versions."""
    kept = cache_folder(SOURCES, OTHERS)
    for old in kept.parent.glob(f"{PREFIX}*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    warm_up(Learner(ModelSettings(), ["warm"]))
    sys.stdout.write("warm: the loops are compiled and kept\n")


if __name__ == "__main__":
    main()
