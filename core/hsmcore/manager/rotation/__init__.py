"""Key rotation: its dates (schedule), the order of its steps (machine), the steps themselves (steps), and the service.

Reading order: schedule, machine, store, context, steps, runner, service; then approvals, pinned, backup.
"""
