"""`python -m models.warm`: compile the kernels once, after an installation, so that the first start does not have to.

The compiled kernels are kept beside the modules; where that folder cannot be written, numba looks for another place.
"""

import shutil
import sys

from models.compiled import PREFIX, SOURCES, cache_folder
from models.learner import Learner
from models.settings import ModelSettings


def main() -> None:
    """Compile everything that scoring and learning need; throw away what was compiled of other versions."""
    kept = cache_folder(SOURCES)
    for old in kept.parent.glob(f"{PREFIX}*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    Learner(ModelSettings(), ["warm"]).warm_up()
    sys.stdout.write("warm: the kernels are compiled and kept\n")


if __name__ == "__main__":
    main()
