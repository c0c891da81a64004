"""Run the embedded broker as a process of its own: `python -m stream_forecaster.edge.broker`.

Prints its bootstrap address on a line once clients can connect; ends on SIGTERM or SIGINT.
"""

import argparse
import signal
import sys

from stream_forecaster.edge.broker import Broker


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(description="A Kafka broker in memory, on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--partitions", type=int, default=1, help="of topics created without any")
    arguments = parser.parse_args()
    ended = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)  # before the thread that would inherit them
    with Broker(port=arguments.port, partitions=arguments.partitions) as broker:
        sys.stdout.write(f"{broker.bootstrap}\n")
        sys.stdout.flush()
        signal.sigwait(ended)


if __name__ == "__main__":
    main()
