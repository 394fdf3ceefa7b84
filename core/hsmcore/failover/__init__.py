"""Failover between members and levels.

Reading order. The state machine, without I/O or clocks: events, breaker, member_state, levels, policy.
The way of a request: endpoint, request, router, resumed, batch, hedge. In the background: health, emergency, budget,
history. All of it for a key manager: path, single, plan, service. docs/FAILOVER.md says what it does.
"""
