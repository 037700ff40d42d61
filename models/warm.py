"""`python -m models.warm`: compile the kernels once, after an installation, so that the first start does not have to.

The compiled kernels are kept beside the modules (numba's cache); where that folder cannot be written, each start compiles.
"""

import sys

from models.learner import Learner
from models.settings import ModelSettings


def main() -> None:
    """Compile everything that scoring and learning need."""
    Learner(ModelSettings(), ["warm"]).warm_up()
    sys.stdout.write("warm: the kernels are compiled and kept\n")


if __name__ == "__main__":
    main()
