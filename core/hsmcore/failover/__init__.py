"""Failover between members and levels.

Reading order. The state machine, without I/O or clocks: history, breaker, member_state, levels, waiting, policy.
The way of a request: endpoint, request, router, batch, hedge. What goes on beside: health, arming. All of it for a key
manager: plan, service. docs/FAILOVER.md says what it does.
"""
