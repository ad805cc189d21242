"""Suites that every member of a room passes: inherit one, say how a member is made, and let pytest run it."""
