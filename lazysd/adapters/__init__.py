"""Drop-in replacements for other projects' converters."""
