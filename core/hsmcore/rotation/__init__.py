"""Key rotation: when (schedule), what follows what (machine), what each step does (steps), and all of it at work
(service).

Reading order: schedule, machine, context, steps, runner, service.
"""
