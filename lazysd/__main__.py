"""`python -m lazysd` is the `lazysd` command."""

from .cli.entry import run

if __name__ == "__main__":
    run()
