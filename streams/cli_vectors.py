"""`url2vec nearest` and `url2vec export`: a look at the live vectors, and vectors out.

Both build the model as a new worker would, from the newest snapshot and the lessons after it, so they show what had been
learned at the last checkpoint and need no running worker.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from streams import topics as broker
from streams.console import Failed, options, out, plain, print_json, prose
from streams.settings import Settings, resolve
from streams.store import Store

if TYPE_CHECKING:
    from models.learner import Learner


async def live_model(settings: Settings) -> "Learner":
    """The model as it was at the last checkpoint. Raises StoreError, BrokerError."""
    from streams.app import new_learner
    from streams.replica import Replica

    facts = await asyncio.to_thread(broker.describe, settings.kafka, [settings.topics.visits])
    partitions = range(facts[settings.topics.visits].partitions) if facts else range(0)
    store = Store(settings)
    try:
        replica = Replica(store, new_learner(settings), None, prose.print)
        await replica.rebuild(partitions)
    finally:
        await store.close()
    return replica.learner


@click.command()
@click.argument("url")
@options()
@click.option("-k", "count", type=click.IntRange(1, 1000), default=10, show_default=True, help="how many")
def nearest(
    url: str, kafka: str | None, redis: str | None, config: str | None, as_json: bool, debug: bool, count: int
) -> None:
    """The URLs whose live vectors are nearest to that of URL, by cosine.

    A URL that was never visited is composed from those that share most of its address, and that is said.

    \b
    Example:
      url2vec nearest https://en.wikipedia.org/wiki/Bee -k 5
    """
    learner = asyncio.run(live_model(resolve(kafka, redis, config)))
    if learner.knows(url):
        found = learner.nearest(url, count)
    else:
        prefix, found = learner.nearest_composed(url, count)
        if not found:
            raise Failed(
                f"{plain(url)} was never visited, nor anything on its host; `url2vec tail` shows URLs as they come"
            )
        prose.print(f"never visited: composed from what is known under {plain(prefix)}", markup=False)
    near = [{"url": other, "similarity": round(similarity, 4)} for other, similarity in found]
    if as_json:
        print_json(near)
        return
    for row in near:
        out.print(f"{row['similarity']:.3f}  {plain(str(row['url']))}", markup=False)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@options()
@click.option(
    "--format", "form", type=click.Choice(["word2vec", "npz", "projector"]),
    help="by default from the name: .npz, .tsv is projector, anything else word2vec text",
)  # fmt: skip
def export(
    file: Path, kafka: str | None, redis: str | None, config: str | None, as_json: bool, debug: bool, form: str | None
) -> None:
    """Write the live vectors to FILE: word2vec text (gensim reads it), npz, or TensorBoard's projector (two .tsv files).

    \b
    Example:
      url2vec export vectors.txt
      python -c "from gensim.models import KeyedVectors; KeyedVectors.load_word2vec_format('vectors.txt')"
    """
    form = form or {".npz": "npz", ".tsv": "projector"}.get(file.suffix, "word2vec")
    urls, vectors = asyncio.run(live_model(resolve(kafka, redis, config))).vectors()
    if not urls:
        raise Failed("there are no vectors yet: nothing was visited")
    written = write_vectors(file, form, urls, vectors)
    if as_json:
        print_json(
            {"urls": len(urls), "dims": int(vectors.shape[1]), "format": form, "files": [str(path) for path in written]}
        )
    else:
        prose.print(f"{len(urls):,} vectors of {vectors.shape[1]} dimensions in {', '.join(map(str, written))}")


def write_vectors(
    file: Path, form: str, urls: list[str], vectors: "np.ndarray[tuple[int, int], np.dtype[np.float32]]"
) -> list[Path]:
    """Write them whole or not at all (a file of the same name is replaced at the end); returns the files written."""
    names = [
        url.encode("utf-8", "replace").decode().replace(" ", "%20").replace("\n", "%0A").replace("\t", "%09")
        for url in urls
    ]
    partial = file.with_name(file.name + ".part")
    if form == "npz":
        with partial.open("wb") as stream:
            np.savez_compressed(stream, urls=np.array(names), vectors=vectors)
    elif form == "projector":
        labels = file.with_name(f"{file.stem}.metadata.tsv")
        labels.write_text("\n".join(names) + "\n", encoding="utf-8")
        np.savetxt(partial, vectors, fmt="%.6g", delimiter="\t")
        partial.replace(file)
        return [file, labels]
    else:
        with partial.open("w", encoding="utf-8") as text:
            text.write(f"{len(names)} {vectors.shape[1]}\n")
            for name, vector in zip(names, vectors, strict=True):
                text.write(name + " " + " ".join(f"{x:.6g}" for x in vector) + "\n")
    partial.replace(file)
    return [file]
