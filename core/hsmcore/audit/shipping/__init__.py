"""Copies of the audit log on their way to other places: CloudWatch Logs, syslog.

Reading order: follow (lines out of the files), cursor (how far each place is), shipper (the thread that does it),
destination (what a place is), cloudwatch and syslog (the two there are), service (all of a log's).
"""

from hsmcore.audit.shipping.destination import Destination, ShippingStatus
from hsmcore.audit.shipping.service import Shipping, destinations

__all__ = ["Destination", "Shipping", "ShippingStatus", "destinations"]
