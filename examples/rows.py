"""The newest forecasts of every key as a CSV file, one row for each step ahead.

    python examples/rows.py localhost:9092 forecasts --step 3600 > hours.csv

The columns are Nixtla's: unique_id, ds, cutoff, StreamForecaster (the mean), and the bounds of the
intervals. `frame` in the place of `rows` would make a pandas DataFrame of the same.
"""

import argparse
import csv
import sys
from itertools import chain

from stream_forecaster.reader import Reader, rows


def main() -> None:
    """Read the topic up to its present end, and print."""
    parser = argparse.ArgumentParser(description="The newest forecasts as CSV.")
    parser.add_argument("bootstrap_servers")
    parser.add_argument("topic")
    parser.add_argument("--step", type=int, help="seconds; the finest resolution by default")
    parser.add_argument("--timezone", default="UTC", help="the service's input.timezone")
    options = parser.parse_args()

    table = Reader(options.bootstrap_servers, options.topic).latest()
    made = rows(table.values(), step_s=options.step, timezone=options.timezone)
    for first in made:
        out = csv.DictWriter(sys.stdout, fieldnames=list(first), lineterminator="\n")
        out.writeheader()
        out.writerows(chain([first], made))


if __name__ == "__main__":
    main()
