"""The form in which a URL is known: many spellings of one page become one word of the vocabulary.

What RFC 3986 (section 6) calls equivalent is made equal: case of scheme and host, default ports, dot segments, percent
encoding (upper-case hex, unreserved characters decoded, reserved ones never; what no URL may hold is encoded, so that
the form is ASCII). Beyond the RFC the `UrlRules` decide; each default has its reason beside it.

A string without `://` that holds a slash or a query is read as a path. Anything else ("Bee", "C#", "mailto:x", "") is a
name that somebody gave to a page: only the white space around it goes.

Promises: pure; never raises; `canonical(canonical(url)) == canonical(url)`; at most `longest` characters; no user name
and no password, so that no secret is shown. Does not judge whether a URL is valid; that is for whoever decodes the
record. Not done, because sites differ: `index.html`, doubled slashes, `;` parameters other than session ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Literal
from urllib.parse import quote

import idna
from xxhash import xxh3_64_hexdigest

# Written for who reads reports, not for the server. A trailing * is any ending. Compared without case. Names that are
# a page's own on many sites (ref, source, campaign, cid, sid, id) are left out: `[urls] drop` adds them where they are not.
TRACKING = (
    "utm_*", "gclid", "gclsrc", "gbraid", "wbraid", "gad_source", "gad_campaignid", "dclid", "srsltid", "_ga", "_gl",
    "fbclid", "fb_action_ids", "fb_action_types", "fb_source", "fb_ref", "igshid", "igsh", "msclkid", "yclid", "ymclid",
    "ysclid", "_openstat", "ttclid", "twclid", "li_fat_id", "epik", "sccid", "rdt_cid", "tblci", "dicbo", "irclickid",
    "mc_cid", "mc_eid", "mkt_tok", "_hsenc", "_hsmi", "__hssc", "__hstc", "__hsfp", "hsctatracking", "hsa_*", "_kx",
    "vero_id", "vero_conv", "oly_anon_id", "oly_enc_id", "elqtrack", "elqtrackid", "ck_subscriber_id", "ml_subscriber*",
    "s_cid", "s_kwcid", "ef_id", "wickedid", "rb_clickid", "wprov", "_branch_match_id", "_branch_referrer", "xtor",
    "mtm_*", "pk_*", "piwik_*", "matomo_*",
    "phpsessid", "jsessionid", "aspsessionid*", "cfid", "cftoken",  # a session's id: each visitor would have own pages
)  # fmt: skip


@dataclass(frozen=True)
class UrlRules:
    """What makes two URLs one page, and which visits teach: the section `[urls]` of the settings."""

    scheme: Literal["one", "keep"] = "one"  # http is https: where both answer, one redirects to the other
    www: Literal["keep", "strip"] = "keep"  # www.a.example and a.example may be two sites
    fragment: Literal["routes", "drop", "keep"] = "routes"  # `#/…` and `#!…` are pages of single-page applications
    query: Literal["keep", "drop"] = "keep"  # on some sites it is the page
    tracking: Literal["drop", "keep"] = "drop"  # the parameters in TRACKING
    keep: tuple[str, ...] = ()  # when given, only these parameters stay
    drop: tuple[str, ...] = ()  # go beside TRACKING; "name*" is all that begin so
    order: Literal["keep", "sort"] = "keep"  # of parameters: a site's own links write one order, and it may matter
    slash: Literal["strip", "keep"] = "strip"  # /a/ is /a: servers redirect one to the other, and logs hold both
    case: Literal["keep", "lower"] = "keep"  # of the path: "lower" is for servers that do not tell them apart
    longest: int = (
        2_048  # characters of the form, 512 at least: real pages stay below, a name of a megabyte fits nowhere
    )
    static: Literal["learn", "skip"] = "skip"  # pictures, styles, scripts, fonts: see streams.traffic
    bots: Literal["learn", "skip"] = "learn"  # visits of programs: see streams.traffic


_CACHED = 16_384  # forms remembered: 4 MB of ordinary URLs, 18 MB of the longest that are remembered
_CACHED_LENGTH = 512
_HOST_LENGTH = 253  # RFC 1035
_EDGE = "".join(map(chr, range(33))) + "\x7f\x85\xa0\u2028\u2029\ufeff"  # what a copied URL brings along at its ends

# Most URLs are in the form already; one match says so in half a microsecond.
_PLAIN = re.compile(r"https://[a-z0-9-]+(?:\.[a-z0-9-]+)*(?:/|(?:/[\w~-][\w.~-]*)+)", re.ASCII)
_HEAD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}+)://([^/?#]*)")
_PATH = re.compile(r"[^:/?]*+[/?]")  # a colon before that makes it a name: mailto:a/b
_ESCAPE = re.compile(r"(?<!%)(?<!%[0-9A-Fa-f])%[0-9A-Fa-f]{2}")  # "%%41a" would decode to an escape that was none
_FOREIGN = re.compile(r"[^A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")  # neither unreserved nor reserved: no URL may hold it
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SESSION = re.compile(r";(?:jsessionid|phpsessid)=[^/;]*", re.IGNORECASE)
_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443", "ftp": "21"}
_ROOTED = {"http", "https", "ws", "wss"}  # schemes where an empty path is "/"


class Canonicaliser:
    """The rules, ready to be applied. Safe to share: it remembers, but an answer depends on its argument alone."""

    def __init__(self, rules: UrlRules | None = None) -> None:
        self.rules = rules = rules or UrlRules()
        self._dropped = _matcher((TRACKING if rules.tracking == "drop" else ()) + rules.drop)
        self._kept = _matcher(rules.keep)
        self._trusts_plain = rules.case == "keep" and rules.www == "keep"
        self._remembered: Callable[[str], str] = lru_cache(_CACHED)(self._form)

    def canonical(self, url: str) -> str:
        """The URL's canonical form: 0.1 µs for one seen lately, 0.5 to 20 for another."""
        return self._remembered(url) if len(url) <= _CACHED_LENGTH else self._form(url)

    def _form(self, url: str) -> str:
        longest = self.rules.longest
        if self._trusts_plain and len(url) <= longest and _PLAIN.fullmatch(url):
            return url
        text = url.strip(_EDGE)
        head = _HEAD.match(text)
        if head:
            scheme, host = self._authority(head[1].lower(), head[2])
            front, rest = f"{scheme}://{host}", text[head.end() :]
        elif _PATH.match(text):
            scheme, front, rest = "", "", text
        else:
            return text if len(text) <= longest else _cut(text, text, longest)
        if len(rest) > 4 * longest:  # a megabyte is read once, to be hashed
            rest = f"{rest[: 4 * longest]}~{_hash(text)}"
        rest, _, fragment = rest.partition("#")
        path, _, query = rest.rstrip(_EDGE).partition("?")
        path, query, fragment = self._path(path, scheme), self._query(query), self._fragment(fragment)
        form = front + path + (query and "?" + query) + (fragment and "#" + fragment)
        if not form:  # nothing but a mark, as "?" or "?utm_source=x": still a word
            return "/"
        return form if len(form) <= longest else _cut(front + path, form, longest)

    def _authority(self, scheme: str, authority: str) -> tuple[str, str]:
        """Scheme and host:port, without user and password."""
        host, port = authority.rpartition("@")[2], ""
        found = re.search(r":([0-9]{0,9})$", host, re.ASCII)
        if found:
            host, port = host[: found.start()], found[1] and str(int(found[1]))
        if len(host) > 4 * _HOST_LENGTH:
            host = f"{host[: 3 * _HOST_LENGTH]}~{_hash(host)}"
        host = _host(host)
        if len(host) > _HOST_LENGTH:
            host = f"{host[: _HOST_LENGTH - 17]}~{_hash(host)}"
        if self.rules.www == "strip" and host.startswith("www.") and "." in host[4:]:
            host = host[4:]
        if port == _PORTS.get(scheme):
            port = ""
        if (
            scheme == "http" and not port and self.rules.scheme == "one"
        ):  # at a port of its own only one of them answers
            scheme = "https"
        return scheme, f"{host}:{port}" if port else host

    def _path(self, path: str, scheme: str) -> str:
        path = _encoded(path)
        if ";" in path:
            path = _SESSION.sub("", path)
        if path.startswith("/") and "/." in path:
            path = _without_dots(path)
        if self.rules.case == "lower":
            path = _ESCAPE.sub(lambda found: found[0].upper(), path.lower())
        if self.rules.slash == "strip" and path.endswith("/"):
            path = path.rstrip("/") or "/"
        return path or ("/" if scheme in _ROOTED else "")

    def _query(self, query: str) -> str:
        if not query or self.rules.query == "drop":
            return ""
        parameters = [parameter for parameter in _encoded(query).split("&") if parameter]
        if self.rules.keep:
            parameters = [p for p in parameters if self._kept(p)]
        else:
            parameters = [p for p in parameters if not self._dropped(p)]
        if self.rules.order == "sort":
            parameters.sort(key=lambda parameter: parameter.partition("=")[0])  # stable: a=2&a=1 stays
        return "&".join(parameters)

    def _fragment(self, fragment: str) -> str:
        if not fragment or self.rules.fragment == "drop":
            return ""
        if self.rules.fragment == "keep":
            return _encoded(fragment)
        # In a route a second # is an anchor; a bare #! or #/ is a link that leads nowhere, or the first page.
        route = _encoded(fragment.partition("#")[0].rstrip(_EDGE))
        return route if route.startswith(("/", "!")) and route not in {"/", "!", "!/"} else ""


def _matcher(names: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a parameter `name=value` has one of the names; a trailing * stands for any ending."""
    exact = frozenset(name.lower() for name in names if not name.endswith("*"))
    begins = tuple(name[:-1].lower() for name in names if name.endswith("*"))

    def matches(parameter: str) -> bool:
        name = parameter.partition("=")[0].lower()
        return name in exact or name.startswith(begins)

    return matches


def _hash(text: str) -> str:
    return xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def _cut(front: str, whole: str, longest: int) -> str:
    """What begins like `front`, and differs wherever `whole` differs: the query of such a URL is in its hash alone."""
    kept = re.sub("%[0-9A-Fa-f]?$", "", front[: longest - 17])  # not through an escape
    return f"{kept}~{_hash(whole)}"


def _encoded(text: str) -> str:
    """Percent encoding of RFC 3986, 6.2.2: one spelling of each character; a % that encodes nothing stays."""
    if "%" in text:
        text = _ESCAPE.sub(_unescaped, text)
    return _FOREIGN.sub(_escaped, text)


def _unescaped(found: re.Match[str]) -> str:
    character = chr(int(found[0][1:], 16))
    return character if character in _UNRESERVED else found[0].upper()


def _escaped(found: re.Match[str]) -> str:
    return quote(found[0].encode("utf-8", "surrogatepass"))


def _without_dots(path: str) -> str:
    """RFC 3986, 5.2.4, for a path that begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


@lru_cache(4_096)
def _host(host: str) -> str:
    """One spelling of a host: lower case, no dot at its end, Punycode, IPv6 at its shortest (RFC 5952)."""
    if host.startswith("[") and host.endswith("]"):
        try:
            return f"[{IPv6Address(host[1:-1]).compressed}]"
        except AddressValueError:
            pass
    if not host.isascii():
        with suppress(ValueError, IndexError):  # idna's errors are ValueErrors: no name that exists, but still a word
            host = idna.encode(host.rstrip(".\u3002\uff0e\uff61"), uts46=True).decode()
    return _FOREIGN.sub(_escaped, host).replace(":", "%3a").lower().rstrip(".")  # a colon stands before a port alone


canonical = Canonicaliser().canonical
