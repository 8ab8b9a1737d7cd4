"""The version, read by the build back end and by ``puzzlefs --version``."""

__version__ = "0.1.0"
