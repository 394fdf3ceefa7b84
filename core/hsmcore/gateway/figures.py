"""The gateway's metrics."""

from __future__ import annotations

from collections import Counter
from math import inf

from hsmcore.gateway.fronts import Fronts
from hsmcore.gateway.server import GatewayServer
from hsmcore.metrics import catalog as names
from hsmcore.metrics.reading import Reading


def read_gateway(reading: Reading, server: GatewayServer, fronts: Fronts | None) -> None:
    """Add the metrics of a gateway. Any thread."""
    for (name, outcome), count in list(server.desk.requests.items()):
        reading.add(names.GATEWAY_REQUESTS, count, name, outcome)
    connected = Counter(one.client.name for one in tuple(server.connections))
    remembered = server.remembered()
    for client in server.desk.directory.clients.values():
        own = [account for counter in server.desk.counters(client) for account in counter.accounts]
        waiting = sum(len(account.waiting) + len(account.held) for account in own)
        reading.add(names.GATEWAY_OPEN, sum(account.open for account in own), client.name)
        reading.add(names.GATEWAY_WAITING, waiting, client.name)
        reading.add(names.GATEWAY_CONNECTIONS, connected[client.name], client.name)
        if (ends := client.rules.tokens_end) is not None and ends != inf:
            reading.add(names.GATEWAY_TOKEN, ends, client.name)
        reading.add(names.GATEWAY_REMEMBERED, remembered.get(client.name, 0), client.name)
    reading.add(names.GATEWAY_REPEATED, server.repeated)
    reading.add(names.GATEWAY_REFUSED, server.desk.strangers)
    reading.add(names.GATEWAY_RECEIVED, server.bytes_in)
    reading.add(names.GATEWAY_SENT, server.bytes_out)
    if fronts is not None:
        reading.add(names.GATEWAY_RESTARTS, fronts.restarts)
