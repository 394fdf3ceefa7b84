"""A front: the process that speaks TLS and HTTP with clients. It holds no key manager, no PIN and no token.

Reading order: core (what it knows, and what it tells the process with the keys), pumps (hsmcore-wire over TLS), link
(through which Vault's face asks). ../front_process.py begins and ends it, ../fronts.py is the other half.
"""
