"""`python -m job`, by which torchrun starts the program."""

from job.cli import main

main()
