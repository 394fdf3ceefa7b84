"""The forms of C2SP's transparency logs. Text in, text out: no file, no store, no key.

Reading order: note, checkpoint, consistency; proof, batch_proof; key_set.
"""
