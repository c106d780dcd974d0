"""The version number: read from here by pyproject.toml and by the package."""

__version__ = "0.1.0"
