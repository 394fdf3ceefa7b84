"""Many clients of a console that connect at once and say little or nothing, until stdin ends.

python -m tests.support.console_crowd HOST PORT COUNT [HEX]
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import sys


def main(host: str, port: str, count: str, said: str = "") -> None:
    """Connect; say `said`, if anything; hold the connections that the server lets stand."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(count) + 64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    crowd = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(int(count))]
    for one in crowd:
        one.setblocking(False)
        one.connect_ex((host, int(port)))
    waiting = {one.fileno(): one for one in crowd}
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLOUT)
    while waiting:
        for number, _ in poll.poll():
            poll.unregister(number)
            with contextlib.suppress(OSError):  # the server has closed it already
                waiting[number].send(bytes.fromhex(said))
            del waiting[number]
    sys.stdout.write("connected\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
