"""``python -m atoms`` is the ``atoms`` command."""

from atoms.cli import main

if __name__ == "__main__":
    main()
