"""`python -m prunus` is the command line."""

from prunus.cli.app import main

main()
