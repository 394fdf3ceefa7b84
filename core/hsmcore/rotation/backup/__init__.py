"""Backups of keys: an envelope that says whose key it is (envelope), places to keep it (places), and the proof that it
can be restored (drill)."""
