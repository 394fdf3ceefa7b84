"""The version of what is installed: hsmcore, or its client alone (clients/python)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version(__name__.partition(".")[0])
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
