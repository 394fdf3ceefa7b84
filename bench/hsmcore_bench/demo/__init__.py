"""The demonstration: an example sequencer that has LiteSVM judge every signature. It needs the extra hsmcore[solana].

Reading order: run, runner, signing, builder, ledger, rawloop, report; then the second act: twins, failover.
"""
