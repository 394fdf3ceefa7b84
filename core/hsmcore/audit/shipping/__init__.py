"""Ships copies of the audit log to CloudWatch Logs and syslog.

Read follow (lines from the files), cursor (progress of a destination), shipper (the thread that sends), destination
(the interface), cloudwatch and syslog (its implementations), service (all destinations of a log).
"""

from hsmcore.audit.shipping.destination import Destination, ShippingStatus
from hsmcore.audit.shipping.service import Shipping, destinations

__all__ = ["Destination", "Shipping", "ShippingStatus", "destinations"]
