"""Failover between members and levels.

Reading order. The state machine, without I/O or clocks: events, breaker, member_state, levels, waiting, policy.
The way of a request: endpoint, request, router, batch, hedge. In the background: health, emergency, budget, history.
All of it for a key manager: plan, service. docs/FAILOVER.md says what it does.
"""
