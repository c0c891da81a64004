"""Quix Streams: a tumbling-window count of ten seconds per key, over a topic of JSON events.

    quixstreams_count.py BOOTSTRAP TOPIC EVENTS

Runs in an environment of its own, since it pins another version of its client. Prints one JSON line
and ends when EVENTS events have passed; it times the second half of them.
"""

import json
import os
import sys
import tempfile
import time
from datetime import timedelta

from quixstreams import Application

from benchmarks.measure.clock import HalfTime

bootstrap, topic_name, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
clock = HalfTime(events)


def count(_: object) -> None:
    """One event has gone through the window."""
    clock.count(1)
    if clock.read == events:
        print(json.dumps(clock.result()), flush=True)
        os._exit(0)  # its own shutdown would be timed by nobody and takes a while


with tempfile.TemporaryDirectory() as state:
    application = Application(
        broker_address=bootstrap,
        consumer_group=f"quix-{time.time_ns()}",
        auto_offset_reset="earliest",
        state_dir=state,
        use_changelog_topics=False,  # in its favour: the state is not made durable
        auto_create_topics=False,
        loglevel="ERROR",
        commit_interval=5,
        consumer_extra_config={"session.timeout.ms": 6000, "fetch.message.max.bytes": 4 << 20},
    )
    topic = application.topic(topic_name, value_deserializer="json", key_deserializer="str")
    frame = application.dataframe(topic)
    frame.tumbling_window(timedelta(seconds=10)).count().current().update(count)
    application.run()
