"""`python -m stream_forecaster` is `stream-forecaster`."""

from stream_forecaster.cli import main

main()
