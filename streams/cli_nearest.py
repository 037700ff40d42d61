"""`url2vec nearest` and `url2vec analogy`: questions to the live vectors.

A URL is asked for in any of its spellings: it is brought to the form in which it is known. One that was never visited
is composed from parts that it shares with known URLs, and that is said.
"""

import asyncio
from collections.abc import Sequence

import click

from streams.cli_vectors import live_model
from streams.console import Failed, options, out, plain, print_json, prose
from streams.settings import Settings, resolve
from streams.urls import Canonicaliser

how_many = click.option("-k", "count", type=click.IntRange(1, 1000), default=10, show_default=True, help="how many")


@click.command()
@click.argument("url")
@options()
@how_many
def nearest(
    url: str, kafka: str | None, redis: str | None, config: str | None, as_json: bool, debug: bool, count: int
) -> None:
    """The URLs whose live vectors are nearest to that of URL, by cosine.

    A URL that was never visited is composed from parts that it shares with known ones, and that is said.

    \b
    Example:
      url2vec nearest https://en.wikipedia.org/wiki/Bee -k 5
    """
    _show(_most_similar(resolve(kafka, redis, config), [url], [], count), as_json)


@click.command()
@click.argument("url")
@options()
@click.option("--minus", multiple=True, metavar="URL", help="what to take away; may come several times")
@click.option("--plus", multiple=True, metavar="URL", help="what to add; may come several times")
@how_many
def analogy(
    url: str, kafka: str | None, redis: str | None, config: str | None, as_json: bool, debug: bool,
    minus: tuple[str, ...], plus: tuple[str, ...], count: int,
) -> None:  # fmt: skip
    """The URLs nearest to URL, minus some, plus others: what is to C as A is to B? Those asked with are left out.

    Each counts as much as the other, whatever their popularity (as gensim's most_similar does it).

    \b
    Example:
      url2vec analogy https://en.wikipedia.org/wiki/Paris \\
        --minus https://en.wikipedia.org/wiki/France --plus https://en.wikipedia.org/wiki/Italy
    """  # fmt: skip
    if not minus and not plus:
        raise click.UsageError(
            "say what to take away (--minus URL) or to add (--plus URL); `url2vec nearest` asks with one"
        )
    found = _most_similar(resolve(kafka, redis, config), [url, *plus], minus, count)
    if not found:
        raise Failed("nothing is left of what was asked: what is added and what is taken away are the same")
    _show(found, as_json)


def _most_similar(
    settings: Settings, positive: Sequence[str], negative: Sequence[str], count: int
) -> list[tuple[str, float]]:
    canonical = Canonicaliser(settings.urls).canonical
    positive, negative = [canonical(url) for url in positive], [canonical(url) for url in negative]
    learner = asyncio.run(live_model(settings))
    for url in dict.fromkeys([*positive, *negative]):
        if learner.knows(url):
            continue
        parts = learner.composed(url)
        if not parts:
            raise Failed(
                f"{plain(url)} was never visited, nor anything like it; `url2vec tail` shows URLs as they come"
            )
        prose.print(f"{plain(url)} was never visited: composed from {plain(', '.join(parts))}", markup=False)
    return learner.most_similar(positive, negative, count)


def _show(found: Sequence[tuple[str, float]], as_json: bool) -> None:
    near = [{"url": other, "similarity": round(similarity, 4)} for other, similarity in found]
    if as_json:
        print_json(near)
        return
    for row in near:
        out.print(f"{row['similarity']:.3f}  {plain(str(row['url']))}", markup=False)
