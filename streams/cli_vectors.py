"""`url2vec export` and `url2vec import`: vectors out of the live model, and vectors into it as a warm start.

`live_model` builds the model as a new worker would, from the newest snapshot and what came after it: so commands show what
had been learned at the last checkpoint, and need no running worker.

An import goes to the store, not to a worker: every replica takes it in, running ones within seconds, later ones when
they start. It is a beginning, no more: what the stream teaches moves the vectors on.
"""

import asyncio
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from models.vector_files import FORMATS, BadVectors, form_of, write
from streams import topics as broker
from streams.console import Failed, options, print_json, prose
from streams.settings import Settings, resolve
from streams.store import Store
from streams.urls import Canonicaliser

if TYPE_CHECKING:
    from models.imported import F32, Imported
    from models.learner import Learner

form_option = click.option(
    "--format", "form", type=click.Choice(FORMATS),
    help="by default from the name: .npz, .bin is word2vec-binary, .tsv is projector, anything else word2vec text",
)  # fmt: skip


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
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@options()
@form_option
def export(
    file: Path, kafka: str | None, redis: str | None, config: str | None, as_json: bool, debug: bool, form: str | None
) -> None:
    """Write the live vectors to FILE: word2vec text or binary (gensim reads both), npz, or TensorBoard's projector.

    The projector takes two .tsv files, vectors and names, and finds them by projector_config.pbtxt beside them.

    \b
    Examples:
      url2vec export vectors.txt
      python -c "from gensim.models import KeyedVectors; KeyedVectors.load_word2vec_format('vectors.txt')"
      url2vec export board/vectors.tsv && tensorboard --logdir board
    """
    form = form or form_of(file)
    urls, vectors = asyncio.run(live_model(resolve(kafka, redis, config))).vectors()
    if not urls:
        raise Failed("there are no vectors yet: nothing was visited")
    try:
        written = write(file, form, urls, vectors)
    except BadVectors as error:
        raise Failed(str(error)) from error
    if as_json:
        print_json(
            {"urls": len(urls), "dims": int(vectors.shape[1]), "format": form, "files": [str(path) for path in written]}
        )
    else:
        prose.print(f"{len(urls):,} vectors of {vectors.shape[1]} dimensions in {', '.join(map(str, written))}")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options()
@form_option
def import_(
    file: Path, kafka: str | None, redis: str | None, config: str | None, as_json: bool, debug: bool, form: str | None
) -> None:
    """Read vectors from FILE as a warm start of the live model: URLs it holds begin where the file says.

    FILE is what `export` writes, or word2vec vectors of another tool whose words are URLs. The stream moves them on:
    they weigh less the more visits a URL gets. Where the model knows some of the URLs already, the file's space is turned
    onto its own by them. Running workers take them in within seconds, others when they start.

    \b
    Example:
      url2vec import vectors.txt
    """
    settings = resolve(kafka, redis, config)
    form = form or form_of(file)
    if not file.is_file():
        raise Failed(f"{file} is not a regular file, and is to be read twice: to check all of it, then to import it")
    try:
        rotation, known = _onto_ours(settings, _parts(file, form, settings))
        urls = asyncio.run(_send(settings, _parts(file, form, settings), rotation))
    except BadVectors as error:
        raise Failed(str(error)) from error
    if as_json:
        print_json({"urls": urls, "dims": settings.dims, "format": form})
    else:
        prose.print(
            f"{urls:,} vectors of {settings.dims} dimensions imported, {known:,} of them of URLs that are known here; "
            "workers take them in within seconds"
        )


def _parts(file: Path, form: str, settings: Settings) -> "Iterator[Imported]":
    """The file's vectors under the names that their URLs have here. Raises BadVectors, Failed for other dimensions."""
    from models.imported import Imported
    from models.vector_reading import read

    canonical, some = Canonicaliser(settings.urls).canonical, False
    for urls, vectors in read(file, form):
        if vectors.shape[1] != settings.dims:
            raise Failed(
                f"{file} holds vectors of {vectors.shape[1]} dimensions, and the model's have {settings.dims} "
                "(`dims` in the section [model] of the settings)"
            )
        names = [canonical(url) for url in urls]
        named = [at for at, name in enumerate(names) if name]
        part = Imported.of([names[at] for at in named], vectors[named])
        if part.urls:
            some = True
            yield part
    if not some:
        raise Failed(f"{file} holds no vector that has a name and a direction")


def _onto_ours(settings: Settings, parts: "Iterator[Imported]") -> "tuple[F32, int]":
    """Reads all, so that nothing is taken in of a file that is torn; returns how to turn its space onto the model's.

    (dims, dims), and the number of URLs that both know. By all of them, here, once: a replica gets the file in parts,
    and each part turned by its own few would fit the others less.
    """
    from models.alignment import turned

    first = next(parts)  # what is wrong with the whole file shows here, before any server is asked
    names, vectors = asyncio.run(live_model(settings)).vectors()
    row = {name: at for at, name in enumerate(names)}
    ours, theirs = [], []
    for part in chain([first], parts):
        both = [(row[url], at) for at, url in enumerate(part.urls) if url in row]
        ours += [at for at, _ in both]
        theirs.append(part.vectors[[at for _, at in both]])
    unturned = np.eye(settings.dims, dtype=np.float32)
    return turned(unturned, vectors[ours], np.concatenate(theirs), np.ones(len(ours))), len(ours)


async def _send(settings: Settings, parts: "Iterator[Imported]", rotation: "F32") -> int:
    store, urls = Store(settings), 0
    try:
        for part in parts:
            part.vectors = part.vectors @ rotation
            await store.add_import(part.encode())
            urls += len(part.urls)
    finally:
        await store.close()
    return urls
