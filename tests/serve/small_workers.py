"""Workers that serve nothing. They stand alone so that a process that runs one imports no torch."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time

from sidera.serve.worker import Worker


def dies_once(arguments: argparse.Namespace, listener: socket.socket, place: Worker) -> None:
    with (place.folder / f"{place.number}.starts").open("a") as starts:
        starts.write("x")
    place.write("")
    if len((place.folder / f"{place.number}.starts").read_text()) == 2:
        if place.number == 1:
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)


def cannot(arguments: argparse.Namespace, listener: socket.socket, place: Worker) -> None:
    sys.exit(arguments.code)
