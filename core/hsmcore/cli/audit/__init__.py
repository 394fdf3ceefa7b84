"""`hsmcore audit`: verify.py judges a log, records.py reads it, ship.py has what needs destinations or devices."""

from hsmcore.cli.audit import records, ship
from hsmcore.cli.audit.verify import app

__all__ = ["app", "records", "ship"]
