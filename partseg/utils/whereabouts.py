"""Where every process is, told through the group's store: who waits in vain learns which rank did not come.

Gloo's and NCCL's timeouts name the one that waited. Here a process notes its place in memory, which costs a step
nothing, and a thread writes it to the store every few seconds.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

LOG = logging.getLogger(__name__)

BEAT = 5.0
"""Seconds between two notes in the store."""


class Whereabouts:
    """The place of this process, told until `stop`, and those of the others.

    After `patience` seconds in one place the log says where everybody is: NCCL then ends the process without an error
    that could say it.
    """

    def __init__(self, store: dist.Store, *, rank: int, world_size: int, patience: float) -> None:
        own = store.clone()  # the group's connection may be busy waiting
        own.set_timeout(timedelta(seconds=10))
        self.store = dist.PrefixStore("whereabouts", own)
        self.rank = rank
        self.world_size = world_size
        self.patience = patience
        self._stopping = threading.Event()
        self.at("the start")
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def at(self, place: str) -> None:
        """Note where this process is."""
        self._here = place, time.time()

    def report(self) -> str:
        """Since when this process waits and where, and who is not there: elsewhere, or silent."""
        place, since = self._here
        waits = f"rank {self.rank} has waited {time.time() - since:.0f} s in {place}"
        try:
            missing = [text for rank in range(self.world_size) if (text := self._missing(rank, place))]
        except RuntimeError:
            return f"{waits}; the group's store does not answer: the process that keeps it, rank 0 or torchrun, is gone"
        return f"{waits}; {'; '.join(missing) or 'so have all others'}"

    def stop(self) -> None:
        """End the thread, before the group and the program end."""
        self._stopping.set()
        self._thread.join(BEAT)

    def _missing(self, rank: int, place: str) -> str:
        """What is known of a rank that is not in `place`; "" for one that is."""
        if rank == self.rank:
            return ""
        if not self.store.check([str(rank)]):
            return f"rank {rank} never joined"
        note: dict[str, Any] = json.loads(self.store.get(str(rank)))
        silent = time.time() - note["written"]
        if note["place"] == place and silent < 3 * BEAT:
            return ""
        heard = f", not heard of for {silent:.0f} s" if silent >= 3 * BEAT else ""
        return f"rank {rank} on {note['host']} is in {note['place']} since {time.time() - note['since']:.0f} s{heard}"

    def _tell(self) -> None:
        told = None
        while True:
            place, since = here = self._here
            now = time.time()
            note = {"host": socket.gethostname(), "place": place, "since": since, "written": now}
            try:
                self.store.set(str(self.rank), json.dumps(note))
            except RuntimeError:  # the store ended with its process, and with it the group
                return
            if now - since > self.patience and told != here:
                told = here
                LOG.error("%s", self.report())
            if self._stopping.wait(BEAT):
                return
