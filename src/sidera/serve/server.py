"""The server process: a port, uvicorn, and the application on it."""

from __future__ import annotations

import socket

from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.serve.app import create_app


def serve(recommender: Recommender, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Run until interrupted; InputError when the port is taken."""
    import uvicorn

    check_port(host, port)
    uvicorn.run(create_app(recommender), host=host, port=port, log_level="warning")


def check_port(host: str, port: int) -> None:
    """InputError when nobody can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise InputError(f"--port {port} is no port", allowed="0 to 65535") from None
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}:{port}: {error.strerror}", fix="choose a free port with --port"
            ) from None
