"""Ports for the stack: those of the last time, the usual ones, or free ones."""

import random
import socket

USUAL_PORTS: dict[str, int | None] = {"s3": 8333, "mlflow": 5000, "prefect": 4200, "ray": 8265}
INNER_PORTS = ["s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc"]
INNER_PORTS += [f"ray.{part}" for part in ("gcs", "client", "node", "objects", "agent", "agent.grpc", "env", "metrics")]


def choose_ports(before: dict[str, int]) -> dict[str, int]:
    """The ports of the last time where they are free, else the usual ones, else any free ones."""
    ports: dict[str, int] = {}
    for name in (*USUAL_PORTS, *INNER_PORTS):
        candidates = [port for port in (before.get(name), USUAL_PORTS.get(name)) if port]
        # Below the ephemeral range, so that no outgoing connection takes a port between here and the service's start.
        candidates += random.SystemRandom().sample(range(20_000, 32_000), 100)
        ports[name] = next(port for port in candidates if port not in ports.values() and is_free(port))
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen on this port on every interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
