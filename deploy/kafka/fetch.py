"""The jars of Apache Kafka, fetched once with Maven: `python -m deploy.kafka.fetch` prints the folder they are in.

Promises: the folder holds either every jar of `pom.xml` or none, also when two fetch at once or one is interrupted; a
changed `pom.xml` fetches anew. Needs `java` and `mvn` on the PATH; does not start anything.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from streams.errors import ConfigError

POM = Path(__file__).with_name("pom.xml")
CACHE = POM.parents[2] / ".cache" / "kafka-libs"
LIMIT_S = 600.0  # 10 s where the repository is near; this is for the day when it is not


def folder() -> Path:
    """Where the jars are, or will be: one folder for each content of `pom.xml`."""
    return CACHE / hashlib.sha256(POM.read_bytes()).hexdigest()[:12]


def missing() -> str | None:
    """Why a real Kafka cannot run here, and what to do about it; None where it can (perhaps after a fetch)."""
    if shutil.which("java") is None:
        return "a real Kafka needs java: apt-get install default-jre-headless"
    if not folder().is_dir() and shutil.which("mvn") is None:
        return "the jars of Kafka are not fetched, which needs mvn: apt-get install maven"
    return None


def fetch() -> Path:
    """The folder with the jars, fetched where they are not there yet. Raises ConfigError with Maven's last words."""
    reason = missing()
    if reason is not None:
        raise ConfigError(reason)
    wanted = folder()
    if wanted.is_dir():
        return wanted
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetching-") as scratch:
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", "-DincludeScope=runtime"]
        command += [f"-DoutputDirectory={scratch}/jars"]
        try:
            done = subprocess.run(  # noqa: S603 - no shell, nothing from outside
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"Maven did not fetch the jars of Kafka within {LIMIT_S:g} s") from None
        if done.returncode != 0:
            words = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line][:2]
            raise ConfigError(f"Maven does not fetch the jars of Kafka: {' '.join(words) or done.returncode}")
        try:
            os.rename(f"{scratch}/jars", wanted)  # noqa: PTH104 - whole or not at all
        except OSError:
            if not wanted.is_dir():  # otherwise somebody else was first, with the same jars
                raise
    return wanted


if __name__ == "__main__":
    try:
        print(fetch())  # noqa: T201
    except ConfigError as error:
        sys.exit(str(error))
