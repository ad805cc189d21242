"""The version of lazysd, in one place: the package, its metadata and every written manifest read it from here."""

__version__ = "0.5.0"
