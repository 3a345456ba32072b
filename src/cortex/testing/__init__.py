"""
Doubles and builders for tests of what is built on Cortex, held to the same contract suites as the real parts.

`clock` is time you move, `builders` make wanted state with sane defaults, `fake_agent` pretends nodes with replicas
whose failures are settings (its sibling `engines.fake` does so for room), and `simulation` runs generated schedules
of faults against the real control plane and checks what is promised at every step.
"""
