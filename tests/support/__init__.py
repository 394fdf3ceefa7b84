"""What the tests share: a SoftHSM world, event loops that judge, independent verifiers, a module that can be held."""
