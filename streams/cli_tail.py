"""`url2vec tail`: follow a topic."""

import asyncio
import time
from typing import Any

import click
import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams import topics as broker
from streams.console import options, out, plain, print_json
from streams.errors import BrokerError, ConfigError
from streams.settings import Settings, resolve


@click.command()
@click.argument("topic", required=False)
@options("kafka", "config", "json", "debug")
@click.option("--limit", type=click.IntRange(1), help="end after this many records")
@click.option("--from-beginning", is_flag=True, help="start with the oldest record instead of the next one")
def tail(
    topic: str | None,
    kafka: str | None,
    config: str | None,
    as_json: bool,
    debug: bool,
    limit: int | None,
    from_beginning: bool,
) -> None:
    """Follow TOPIC (scored-visits by default): a readable line a record, or the value as it stands with --json.

    A value that is not JSON comes, with --json, as a string of its bytes; for rejected-visits the reason stands beside it.

    \b
    Example:
      url2vec tail rejected-visits --from-beginning --limit 10
    """
    settings = resolve(kafka, None, config, need=("kafka",))
    name = topic or settings.topics.scored
    try:
        asyncio.run(_follow(settings, name, as_json, limit, from_beginning))
    except KafkaError as error:
        raise BrokerError(f"Kafka at {settings.kafka} does not answer as it should: {error}") from error


async def _follow(settings: Settings, topic: str, as_json: bool, limit: int | None, from_beginning: bool) -> None:
    facts = await asyncio.to_thread(broker.describe, settings.kafka, [topic])
    if topic not in facts:
        raise ConfigError(f"no topic {topic} on {settings.kafka}: `url2vec topics` lists what is there")
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(facts[topic].partitions)]
        consumer.assign(partitions)
        await (consumer.seek_to_beginning if from_beginning else consumer.seek_to_end)(*partitions)
        shown = 0
        async for record in consumer:
            _show(record, settings, as_json)
            shown += 1
            if shown == limit:
                return
    finally:
        await consumer.stop()


def _show(record: Any, settings: Settings, as_json: bool) -> None:
    reason = next((value.decode("utf-8", "replace") for name, value in record.headers if name == "error"), None)
    value = record.value or b""
    try:
        decoded = msgspec.json.decode(value)
    except (msgspec.MsgspecError, ValueError):
        decoded = value.decode("utf-8", "backslashreplace")
    if as_json:
        print_json(decoded if reason is None else {"error": reason, "value": decoded})
        return
    when = time.strftime("%H:%M:%S", time.localtime(record.timestamp / 1000))
    where = f"{when} {record.partition}/{record.offset}"
    if reason is not None:
        text = f"{reason}: {value[:120]!r}"
    elif record.topic == settings.topics.scored and isinstance(decoded, dict):
        text = _scored(decoded)
    else:
        text = value.decode("utf-8", "backslashreplace")
    out.print(plain(f"{where} {text}"), markup=False)


def _scored(visit: dict[str, Any]) -> str:
    scores = " ".join(f"{task}={chance:.3f}" for task, chance in visit.get("scores", {}).items())
    flags = f" [{', '.join(visit['flags'])}]" if visit.get("flags") else ""
    following = visit.get("next_urls") or []
    then = f" → {following[0]['url']}" if following else ""
    return f"{visit.get('visitor_id')} {scores} {visit.get('url')}{flags}{then}"
