"""Processes of a torch.distributed group that run functions for a test."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch
import torch.distributed as dist

# For one function, the start of the processes included; some seconds where nothing else runs.
SECONDS = 240.0


def _serve(connection: Connection, rank: int, size: int, device_type: str, store: str) -> None:
    for name in ("CONVT_KERNEL", "CONVT_PRINT_PLAN"):
        os.environ.pop(name, None)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name may have no address
    if device_type == "cpu":
        # Where torch sees a GPU, fully_shard on a mesh of CPUs ends its process without a message (torch 2.11).
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device_type == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=SECONDS),
    )
    while True:
        function, arguments = connection.recv()
        torch.manual_seed(0)
        faulthandler.dump_traceback_later(SECONDS - 10)  # of what waits for another process
        try:
            function(torch.device(device_type), *arguments)
        except BaseException:
            connection.send(traceback.format_exc())
        else:
            connection.send(None)
        finally:
            faulthandler.cancel_dump_traceback_later()


class Ranks:
    """Two processes of one group; with gloo on the CPU, with NCCL on two GPUs.

    They start with the first function. Where one fails, all are ended, since the others may wait for it in a
    collective; the next function finds new ones.
    """

    SIZE = 2

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._folder = tempfile.TemporaryDirectory(prefix="convt-ranks-")
        self._starts = 0

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Runs a module's `function` with the device and `arguments` in every process; all start from one seed."""
        __tracebackhide__ = True
        if not self._processes:
            self._start()
        try:
            for connection in self._connections:
                connection.send((function, arguments))
        except BrokenPipeError:
            self.stop()
            raise AssertionError("a process had ended before") from None
        waiting = list(self._connections)
        while waiting:
            ready = wait(waiting, timeout=SECONDS)
            failure = None if ready else f"no answer within {SECONDS:.0f} s"
            for connection in ready:
                assert isinstance(connection, Connection)
                waiting.remove(connection)
                try:
                    failure = failure or connection.recv()
                except EOFError:
                    failure = failure or "the process ended"
                if failure is not None:
                    failure = f"rank {self._connections.index(connection)}: {failure}"
                    break
            if failure is not None:
                self.stop()
                raise AssertionError(failure)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._starts += 1
        store = os.path.join(self._folder.name, f"store{self._starts}")  # one that was used serves no second group
        for rank in range(self.SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, self.SIZE, self.device_type, store), daemon=True
            )
            with pytest.MonkeyPatch.context() as environment:
                # As in different programs: nothing may depend on the order of a set, which hashes decide.
                environment.setenv("PYTHONHASHSEED", str(1 + 6 * rank))
                process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def stop(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes.clear()
        self._connections.clear()
