"""Quix Streams: a tumbling-window count of ten seconds per key, over a topic of JSON events.

    quixstreams_count.py BOOTSTRAP TOPIC EVENTS

Runs in an environment of its own, since it pins another version of its client. Prints one JSON line
and ends when EVENTS events have passed; it times the second half of them.
"""

import json
import os
import resource
import sys
import tempfile
import time
from datetime import timedelta

from quixstreams import Application

bootstrap, topic_name, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen, begin_s, begin_cpu_s = 0, 0.0, 0.0


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def count(_: object) -> None:
    """One event has gone through the window."""
    global seen, begin_s, begin_cpu_s  # noqa: PLW0603  (a script)
    if seen == events // 2:
        begin_s, begin_cpu_s = time.perf_counter(), cpu_s()
    seen += 1
    if seen == events:
        result = {
            "events": events - events // 2,
            "wall_s": time.perf_counter() - begin_s,
            "cpu_s": cpu_s() - begin_cpu_s,
        }
        print(json.dumps(result), flush=True)
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
