"""Which visits are no reader's choice: files that a page brings along, and programs that walk a site.

Such visits are scored like any other (each record gets an answer), but where `[urls] static` or `[urls] bots` says
`skip`, URL2vec neither learns them nor sees them between two pages.

*Static* is what a browser fetches by itself: pictures, styles, scripts, fonts. Documents, archives, sound and video are
not: somebody chose them. Skipped by default: a style sheet comes with every page, so that, learned, it stands next to all
of them and pushes the pages out of each other's window. On the Apache log, where 54 % of the visits are static, the next
page is among the ten proposed in 30 % of the cases without them, in 26 % with. A site of pictures says `static = "learn"`.

*Bots* are recognised by words that honest programs put in their user agent. Of 2,123 known ones (crawler-user-agents
1.67) 88 % are found; crawlerdetect 0.4, a list of 1,500 patterns, finds 86 %, and the two agree on 99 % of the lines of
the Apache log. A name seen for the first time costs 12 µs, with the list 620. A program that calls itself a browser is
found by neither; a visit without a user agent is nobody's bot. Learned by default: on that log (27 % of the visits are
bots') skipping them moved the figure above by less than chance does, and a program that passes on what people did,
under its own name, would teach nothing at all.

Promises: pure, never raises; what is remembered is bounded.
"""

from functools import lru_cache

from streams.urls import UrlRules

_STATIC = (
    ".css", ".js", ".mjs", ".map", ".wasm", ".png", ".jpg", ".jpeg", ".gif", ".ico", ".svg", ".svgz", ".webp", ".avif",
    ".bmp", ".cur", ".apng", ".tif", ".tiff", ".woff", ".woff2", ".ttf", ".otf", ".eot",
)  # fmt: skip
# Words that honest programs have in their name; "http", "@" and "www." are where they say whom to ask. A browser has none.
_WORDS = (
    "bot", "crawl", "spider", "slurp", "scrap", "http", "@", "www.", "archive", "nutch", "heritrix", "indexer", "validator",
    "check", "preview", "fetch", "monitor", "uptime", "pingdom", "scan", "externalhit", "whatsapp", "mediapartners",
    "google-", "googleother", "favicon", "headless", "phantomjs", "puppeteer", "playwright", "selenium", "lighthouse",
    "inspection", "feed", "rss", "reader", "livejournal.com", "curl", "wget", "libwww", "httrack", "python", "java/", "jetty",
    "perl", "ruby", "php/", "axios", "guzzle", "undici", "postman", "sleuth", "daum", "semanticscholar",
)  # fmt: skip
_INNOCENT = ("cubot", "okhttp")  # a telephone, and what applications on telephones fetch with: people hold them
_TAIL = 8  # characters that hold the longest of them
_LONGEST = 512  # characters of a user agent that are read: beyond are only attacks
_CACHED = 8_192  # user agents remembered, at most 5 MB


def teaches(rules: UrlRules, url: str, user_agent: str | None) -> bool:
    """Whether URL2vec may learn from a visit, by the rules."""
    return not (rules.static == "skip" and is_static(url)) and not (rules.bots == "skip" and is_bot(user_agent))


def is_static(url: str) -> bool:
    """Whether a URL names a file that pages bring along, by the ending of its path.

    >>> is_static("https://shop.example/logo.PNG?v=2"), is_static("https://shop.example/guide.pdf")
    (True, False)
    """
    return url.partition("?")[0].partition("#")[0][-_TAIL:].lower().endswith(_STATIC)


def is_bot(user_agent: str | None) -> bool:
    """Whether the user agent says of itself that it is a program; False where there is none."""
    return _named(user_agent[:_LONGEST]) if user_agent else False


@lru_cache(_CACHED)
def _named(user_agent: str) -> bool:
    name = user_agent.lower()
    for word in _INNOCENT:
        name = name.replace(word, "")
    return any(word in name for word in _WORDS)
