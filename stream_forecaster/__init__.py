"""Calibrated forecasts for every key of a Kafka topic, exactly once.

The package is the core; input and output are guests in `edge/`. `LIST` in
`tests/laws/test_floors.py` is at once the import rule (a module may import only modules above it),
the reading order and the data's path. Read `shard.advance` and the loop in `service` first.
"""

__version__ = "0.1.0"
