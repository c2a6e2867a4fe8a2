"""The slow part of the examination: a timed rendezvous of all hosts, then an all-reduce between pairs of them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from llama_scale.runs.doctor.ask import read_line
from llama_scale.runs.doctor.records import Answer, Finding, Needs

PAIR_BYTES = 16 << 20
"""Reduced between the hosts of a pair: enough that its time is that of bandwidth, not of latency."""
_ALL_PAIRS = 8
"""Up to so many hosts every pair is tried; among more, each host with those 1, 2, 4, ... places on."""
_SLOW = 1 / 3
_START_S = 90.0
"""Time that torch may take to be imported on a busy host."""
_MARGIN_S = 10.0


class Peer:
    """A process on a host that joins groups as it is told.

    Args:
        host: Its name; empty: this machine.
        interface: Network interface that its traffic is to take; empty leaves it to the library.
        ssh_port: Port of sshd.
    """

    def __init__(self, host: str, *, interface: str, ssh_port: int | None) -> None:
        command = [sys.executable, "-P", "-m", "llama_scale.train.link_test"]
        variables = {"GLOO_SOCKET_IFNAME": interface} if interface else {}
        forwarded = {k: v for k, v in os.environ.items() if k.startswith(("NCCL_", "GLOO_", "UCX_", "FI_"))}
        variables |= forwarded
        if host:
            words = ["env", "-u", "PYTHONDONTWRITEBYTECODE", *(f"{k}={v}" for k, v in variables.items()), *command]
            place = ["-p", str(ssh_port)] if ssh_port else []
            command = ["ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *place, host]
            command.append(f"exec {shlex.join(words)}")
        own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.host = host
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=own | ({} if host else variables),
        )

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """Return the next answer; one with ``error`` if none comes in time."""
        deadline = time.monotonic() + timeout_s
        while (line := read_line(self._process, deadline)) is not None:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
        status = self._process.poll()
        return {"error": f"no word within {timeout_s:g} s" if status is None else f"it ended with status {status}"}

    def ask(self, patience_s: float, **told: Any) -> dict[str, Any]:
        """Tell it something and return the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(told).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:
            return {"error": "its process has ended"}
        return self.hear(patience_s)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        with self._process:
            pass


def test_links(needs: Needs, answers: Mapping[str, Answer], *, timeout_s: float) -> list[Finding]:
    """Time the rendezvous and the links.

    Args:
        needs: What the run needs.
        answers: What the hosts answered before; all of them did.
        timeout_s: Time that joining a group may take.
    """
    hosts = needs.hosts if len(needs.hosts) > 1 else ("", "")
    if needs.world < 2 and len(needs.hosts) < 2:
        return []
    peers = []
    try:
        for host in hosts:
            facts = answers[host].facts if host else None
            interface = facts["interface"][0] if facts and isinstance(facts["interface"], list) else ""
            peers.append(Peer(host, interface=interface if host else "lo", ssh_port=needs.ssh_port))
        with ThreadPoolExecutor(len(peers)) as pool:
            return list(_time_links(peers, needs, pool=pool, timeout_s=timeout_s))
    finally:
        for peer in peers:
            peer.close()


def _time_links(
    peers: Sequence[Peer], needs: Needs, *, pool: ThreadPoolExecutor, timeout_s: float
) -> Iterator[Finding]:
    ready = list(pool.map(lambda peer: peer.hear(_START_S), peers))
    dead = [(peer, answer["error"]) for peer, answer in zip(peers, ready, strict=True) if "error" in answer]
    for peer, error in dead:
        message = f"torch cannot be started there: {error}"
        remedy = "run `python -m llama_scale.train.link_test` there by hand"
        yield Finding(check="rendezvous", host=peer.host, level="failed", message=message, remedy=remedy)
    if dead:
        return
    begin = time.monotonic()
    answers = _group(peers, range(len(peers)), needs, pool=pool, size=0, timeout_s=timeout_s)
    seconds = time.monotonic() - begin
    wrong = [answer["error"] for answer in answers if "error" in answer]
    if wrong:
        message = f"the rendezvous of all {len(peers)} hosts failed: {wrong[0]}"
        remedy = "the pairs below show where; open the ports of the network between the hosts"
        yield Finding(check="rendezvous", host="", level="failed", message=message, remedy=remedy)
    else:
        message = f"rendezvous of {len(peers)} processes in {seconds:.2f} s"
        yield Finding(check="rendezvous", host="", level="ok", message=message)
    rates: dict[tuple[int, int], float] = {}
    for pairs in rounds(len(peers)):
        tried = pool_pairs(peers, pairs, needs, timeout_s=timeout_s)
        for pair, answer in tried.items():
            if "error" in answer:
                message = f"an all-reduce between them failed: {answer['error']}"
                remedy = "look at the network and the firewall between these two"
                yield Finding(check="link", host=_name(peers, pair), level="failed", message=message, remedy=remedy)
            else:
                rates[pair] = answer["bytes_per_s"]
    yield from _judge_rates(peers, rates)


def _judge_rates(peers: Sequence[Peer], rates: Mapping[tuple[int, int], float]) -> Iterator[Finding]:
    usual = median(rates.values()) if rates else 0.0
    for pair, rate in sorted(rates.items()):
        text = f"all-reduce at {rate / 1e9:.2f} GB/s"
        if len(rates) >= 3 and rate < _SLOW * usual:
            message = f"{text}, and {usual / 1e9:.2f} GB/s between most"
            remedy = "look at the cables and link speeds of these two"
            yield Finding(check="link", host=_name(peers, pair), level="warning", message=message, remedy=remedy)
        else:
            yield Finding(check="link", host=_name(peers, pair), level="ok", message=text)


def pool_pairs(
    peers: Sequence[Peer], pairs: Sequence[tuple[int, int]], needs: Needs, *, timeout_s: float
) -> dict[tuple[int, int], dict[str, Any]]:
    """Time disjoint pairs at the same time; return each one's answer."""
    with ThreadPoolExecutor(max(1, 3 * len(pairs))) as pool:

        def one(pair: tuple[int, int]) -> dict[str, Any]:
            answers = _group(peers, pair, needs, pool=pool, size=PAIR_BYTES, timeout_s=timeout_s)
            return next((answer for answer in answers if "error" in answer), answers[0])

        return dict(zip(pairs, pool.map(one, pairs), strict=True))


def _group(
    peers: Sequence[Peer],
    members: Sequence[int],
    needs: Needs,
    *,
    pool: ThreadPoolExecutor,
    size: int,
    timeout_s: float,
) -> list[dict[str, Any]]:
    """Let some peers join one group; return their answers in that order."""
    first = peers[members[0]]
    port = first.ask(timeout_s, port=True)
    if "error" in port:
        return [port]
    address = first.host or "127.0.0.1"

    def join(rank: int) -> dict[str, Any]:
        told = {"address": address, "port": port["port"], "rank": rank, "world": len(members)}
        # On one machine NCCL wants a GPU a process.
        index = 0 if peers[members[rank]].host else rank
        told |= {"bytes": size, "timeout_s": timeout_s, "device": needs.device, "index": index}
        return peers[members[rank]].ask(timeout_s + _MARGIN_S, **told)

    return list(pool.map(join, range(len(members))))


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Return the pairs to try, in rounds of disjoint ones.

    >>> rounds(4)
    [[(0, 3), (1, 2)], [(0, 2), (1, 3)], [(0, 1), (2, 3)]]
    """
    if count <= _ALL_PAIRS:
        return _all_rounds(count)
    found = []
    step = 1
    while step < count:
        found.append([(i, i ^ step) for i in range(count) if i < i ^ step < count])
        step *= 2
    return found


def _all_rounds(count: int) -> list[list[tuple[int, int]]]:
    """Return every pair once: the circle method of tournaments."""
    places: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    half = len(places) // 2
    found = []
    for _ in range(len(places) - 1):
        drawn = zip(places[:half], reversed(places[half:]), strict=True)
        found.append(sorted((min(a, b), max(a, b)) for a, b in drawn if a is not None and b is not None))
        places = [places[0], *places[2:], places[1]]
    return found


def _name(peers: Sequence[Peer], pair: tuple[int, int]) -> str:
    return " - ".join(peers[member].host or "this machine" for member in pair)
