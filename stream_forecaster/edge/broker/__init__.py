"""The embedded broker: Kafka's wire protocol in one thread, in memory, for the demo and for tests.

It exists so that both run on any machine with nothing but the Python packages. The codec is the
client library's own; what requests mean is written here and checked, by one contract test suite,
against Apache Kafka, which is right wherever the two differ (`tests/contract`).

    wire bytes -> server -> dispatch -> *_apis -> topics, log | groups | transactions

The right-hand side is plain state without sockets or clocks. Nothing is written to disk; there is
one replica, no TLS, no authentication, and so nothing but the loopback interface is served.
"""

from stream_forecaster.edge.broker.faults import Delay, Fault, Hook, Message
from stream_forecaster.edge.broker.server import MAX_REQUEST_BYTES, Broker

__all__ = ["MAX_REQUEST_BYTES", "Broker", "Delay", "Fault", "Hook", "Message"]
