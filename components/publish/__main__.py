"""Run the stage as a command: see `--help`."""

from components.adapters.entry import main

main("publish")
