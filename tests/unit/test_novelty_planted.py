"""Strange visits that were planted into the real access log stand out from what was there, and are learned like it.

Planted from the 2,000th line on, each under a visitor of its own, with an ordinary browser's name, between honest visits:
crawlers (15 known pages in no order), scanners (8 paths of what they look for) and broken links (an honest visitor's last
pages, then a known URL with a letter wrong). How novelty is found was chosen with these and other seeds. Held out of that:
parameters that nobody writes on known pages, and random identifiers. Planted visits teach, as they would: by the end a
scanner's paths have been asked for several times, and are no news any more.

Seeds 101 to 106 (`python -m tests.unit.test_novelty_planted` prints them), mean and least AUC of planted visits against
honest pages: crawlers .868, .856; scanners .857, .822; broken links .890, .859; parameters .920, .837; identifiers .952,
.938. Against all honest visits, pictures and styles included, .920 or more each. The median of each kind is higher than
.90 to .97 of recent visits. It is not more because 27 % of the log's honest visits are those of programs that do the
same, and a fifth of its pages is visited once.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.stats import rankdata

from models.lesson import Lesson
from models.next_url import NextUrls
from models.novelty import Novelty
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from models.visits import VisitContext
from schemas.decoding import Decoder
from schemas.logs import LogFile
from schemas.logs_lines import LogRecord
from schemas.records import WebVisit
from streams.sessions import Sessioniser
from streams.traffic import is_static
from streams.visitor_layouts import Visitor

LOG = Path(__file__).resolve().parents[2] / "deploy" / "data" / "apache_logs" / "access.log.gz"
NOW_MS = 1_500_000_000_000  # after the log
FROM = 2_000
SEED = 101
SCANNED = (
    "/wp-login.php", "/wp-admin", "/wp-admin/setup-config.php", "/xmlrpc.php", "/phpmyadmin/index.php",
    "/phpMyAdmin/scripts/setup.php", "/pma/index.php", "/mysql/admin", "/admin", "/admin.php",
    "/administrator/index.php", "/.env", "/.git/config", "/.git/HEAD", "/.svn/entries", "/.aws/credentials",
    "/config.php.bak", "/backup.sql", "/db.sql.gz", "/cgi-bin/test.cgi", "/cgi-bin/php5", "/shell.php",
    "/manager/html", "/jmx-console", "/solr/admin/info/system", "/actuator/health",
    "/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php", "/boaform/admin/formLogin", "/HNAP1",
    "/owa/auth/logon.aspx", "/server-status", "/web.config", "/composer.lock", "/id_rsa", "/.ssh/id_rsa", "/console",
    "/login.action", "/struts/utils.action", "/druid/index.html", "/swagger-ui.html",
)  # fmt: skip
PARAMETERS = ("?id=1%27%20OR%201=1", "?page=../../../../etc/passwd", "?cmd=whoami", "?debug=true", "?union=select")
KINDS = ["crawler"] * 4 + ["scanner"] + ["broken"] * 5 + ["parameters"] * 3 + ["identifiers"] * 3


def honest_visits() -> list[WebVisit]:
    decoder = Decoder()
    lines = [line for line in LogFile(LOG, "auto", now_ms=NOW_MS) if isinstance(line, LogRecord)]
    return [decoder.visit(line.visitor_id.encode(), line.value, [], NOW_MS) for line in lines]


def misspelt(draw: random.Random, url: str) -> str:
    """The URL with a letter of its path lost, doubled up with another, or added."""
    start = url.index("/", len("https://")) + 1
    letters = [k for k in range(start, len(url)) if url[k].isalpha()]
    if len(letters) < 3:
        return url + "x"
    at, wrong = draw.choice(letters), draw.choice("abcdefghijklmnopqrstuvwxyz")
    return url[:at] + draw.choice((wrong + "q", "", wrong + url[at])) + url[at + 1 :]


class Planter:
    """Makes sessions that nobody had: each visit with what kind it is of."""

    def __init__(self, seed: int) -> None:
        self._draw, self._number = random.Random(seed), 0

    def session(self, seen: Sequence[WebVisit], of: dict[str, list[WebVisit]]) -> list[tuple[WebVisit, str]]:
        """seen: honest visits of pages so far; of: those of each visitor."""
        draw, kind = self._draw, self._draw.choice(KINDS)
        self._number += 1
        if kind == "crawler":
            every = list(dict.fromkeys(visit.url for visit in seen))
            urls = [(draw.choice(every), kind) for _ in range(15)]
        elif kind == "scanner":
            urls = [("http://localhost" + path, kind) for path in draw.sample(SCANNED, 8)]
        else:
            followed = of[draw.choice(seen[-500:]).visitor_id][-3:]
            urls = [(visit.url, "followed") for visit in followed]
            bad = {
                "broken": misspelt(draw, draw.choice(seen[-800:]).url),
                "parameters": followed[-1].url.partition("?")[0] + draw.choice(PARAMETERS),
                "identifiers": f"http://localhost/{draw.getrandbits(128):032x}",
            }
            urls.append((bad[kind], kind))
        return [
            (
                msgspec.structs.replace(
                    seen[-1], event_id=f"planted{self._number}-{k}", visitor_id=f"planted{self._number}", url=url,
                    user_agent="Mozilla/5.0 (X11; Linux x86_64) Chrome/90.0", referrer=None,
                ),
                kind,
            )
            for k, (url, kind) in enumerate(urls)
        ]  # fmt: skip


def with_planted(honest: Sequence[WebVisit], seed: int) -> Iterator[tuple[WebVisit, str]]:
    """The log with planted sessions in it, a visit of theirs after each third honest one; honest visits are of kind ""."""
    planter, draw = Planter(seed), random.Random(seed)
    seen: list[WebVisit] = []
    of: dict[str, list[WebVisit]] = {}
    waiting: list[tuple[int, WebVisit, str]] = []
    for k, visit in enumerate(honest):
        yield visit, ""
        if not is_static(visit.url):
            seen.append(visit)
            of.setdefault(visit.visitor_id, []).append(visit)
        for due in [w for w in waiting if w[0] <= k]:
            waiting.remove(due)
            yield msgspec.structs.replace(due[1], timestamp_ms=visit.timestamp_ms), due[2]
        if k >= FROM and draw.random() < 0.016:
            session = planter.session(seen, of)
            waiting += [(k + 1 + 3 * n, planted, kind) for n, (planted, kind) in enumerate(session)]


@dataclass
class Judged:
    novelty: np.ndarray
    kind: np.ndarray
    page: np.ndarray  # neither a file nor a repeat

    def of(self, kind: str) -> np.ndarray:
        found: np.ndarray = self.novelty[(self.kind == kind) & self.page]
        return found

    def auc(self, kind: str, files: bool = False) -> float:
        """Against honest pages, or all honest visits."""
        planted = self.of(kind)
        honest = self.novelty[(self.kind == "") & (self.page | files)]
        rank = rankdata(np.concatenate([planted, honest]))[: len(planted)]
        return float((rank.sum() - len(planted) * (len(planted) + 1) / 2) / len(planted) / len(honest))


def judge(visits: Sequence[tuple[WebVisit, str]], batch: int = 128) -> Judged:
    """Score, then learn, in the learner's order; what came before planting is left out."""
    settings, sessions = ModelSettings(), Sessioniser(1_800_000)
    urls, following, novelty = URL2Vec(settings), NextUrls(settings.dims), Novelty()
    visitors: dict[str, Visitor] = {}
    contexts: list[VisitContext] = []
    for visit, _ in visits:
        visitors[visit.visitor_id], context, _ = sessions.visit(visitors.get(visit.visitor_id), visit, 0)
        contexts.append(context)
    answers = []
    for at in range(0, len(contexts), batch):
        some = contexts[at : at + batch]
        lesson = Lesson.of(some, [], 1, now_ms=NOW_MS)
        steps = lesson.steps
        found, recent = urls.vocabulary.find(steps.url), urls.vocabulary.find(steps.recent)
        _, foreseen = following.rank(found, recent, (steps.recent[:, 0] != 0) & ~steps.repeat, urls)
        surprise = novelty.surprise(steps, found, recent, foreseen, urls, lesson.names)
        answers.append(novelty.calibrated(surprise.bits))
        following.learn(found, recent, steps.repeat, urls)
        lesson.names = urls.learn(steps, lesson.names, lesson.clock_ms, lesson.titles)
        following.notice(urls.vocabulary.find(steps.url), urls)
        novelty.learn(steps, surprise, novelty.sample(steps), lesson.names)
    pages = np.array([context.teaches and not context.repeat for context in contexts])
    kinds = np.array([kind for _, kind in visits])
    return Judged(np.concatenate(answers)[FROM:], kinds[FROM:], pages[FROM:])


@pytest.fixture(scope="module")
def judged() -> Judged:
    return judge(list(with_planted(honest_visits(), SEED)))


@pytest.mark.parametrize(
    ("kind", "auc", "median"),
    [
        ("crawler", 0.83, 0.88),
        ("scanner", 0.80, 0.88),
        ("broken", 0.83, 0.88),
        ("parameters", 0.80, 0.90),
        ("identifiers", 0.88, 0.90),
    ],
)
def test_planted_visits_stand_out(judged: Judged, kind: str, auc: float, median: float) -> None:
    assert len(judged.of(kind)) >= 8
    assert judged.auc(kind) > auc
    assert judged.auc(kind, files=True) > auc + 0.04
    assert np.median(judged.of(kind)) > median


def test_the_pages_that_honest_visitors_go_to_are_spread_over_the_scale(judged: Judged) -> None:
    low, middle, high = np.quantile(judged.novelty[judged.kind == ""], [0.1, 0.5, 0.9])
    assert low < 0.2
    assert 0.35 < middle < 0.6
    assert 0.7 < high < 0.95


def test_who_follows_the_links_that_others_follow_is_not_strange(judged: Judged) -> None:
    assert np.median(judged.of("followed")) < np.median(judged.of("crawler")) - 0.15


if __name__ == "__main__":
    for seed in range(101, 107):
        found = judge(list(with_planted(honest_visits(), seed)))
        for kind in dict.fromkeys(KINDS):
            n, median = len(found.of(kind)), np.median(found.of(kind))
            figures = f"AUC {found.auc(kind):.3f}, with files {found.auc(kind, files=True):.3f}, median {median:.3f}"
            sys.stdout.write(f"{seed} {kind:12s} {n:4d} visits  {figures}\n")
