"""`python -m keylayers`: the command line without an installed script."""

from keylayers.cli import main

if __name__ == "__main__":
    main()
